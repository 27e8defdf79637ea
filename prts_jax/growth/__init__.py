"""Model growth: operators make growth maps, executors carry them out."""
