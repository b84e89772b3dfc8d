"""Trained agents in real environments: many trials in one context."""
