"""Ahead-of-time compilation for TPUs that need not be there: memory, time and collectives."""
