"""Rollouts that are recorded as data, and the parts of the learners that make them."""
