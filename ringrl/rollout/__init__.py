"""Trained agents in real environments: many trials in one context."""

from typing import Literal

Probe = Literal["truncated", "shuffled", "foreign", "blind"]
"""How an agent's past can be tampered with, see `ringrl.rollout.probe`; here, where nothing heavy is imported."""
