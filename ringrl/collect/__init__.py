"""Rollouts and learners that make data."""
