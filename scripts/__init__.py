"""Programs that make what the repository holds."""
