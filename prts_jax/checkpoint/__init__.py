"""Checkpoints: what a run leaves behind, what a restore checks, and growth from file to file."""
