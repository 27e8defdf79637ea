"""Batches as a pure function of (store, seed, position)."""
