"""Checks of stored data, and what their returns say."""
