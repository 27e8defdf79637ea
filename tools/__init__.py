"""Programs that maintain the repository; not installed."""
