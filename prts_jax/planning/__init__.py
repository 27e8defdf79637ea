"""When to grow, what it saves, and how fast the hardware is."""
