"""Statistics -> figures."""
