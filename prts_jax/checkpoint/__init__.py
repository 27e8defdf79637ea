"""Checkpoints: files, lineage, digests, locks, saving and restoring."""
