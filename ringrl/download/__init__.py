"""Fetching large files over HTTP."""
