"""Growth from checkpoint to checkpoint: planned once, then streamed or done by reference."""
