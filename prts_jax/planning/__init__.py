"""When to grow, and what it saves."""
