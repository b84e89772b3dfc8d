"""Statistics and figures -> one self-contained page."""
