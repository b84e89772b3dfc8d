"""Returns -> statistics, each with its interval."""
