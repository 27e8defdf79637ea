"""Runs of a task that build a token store."""
