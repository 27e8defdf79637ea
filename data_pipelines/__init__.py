"""Text to token stores (seqio tasks) and token stores to batches (NumPy only)."""
