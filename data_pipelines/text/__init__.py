"""Text and rows to documents and tokens."""
