"""Trained agents in real environments: many trials in one context."""

from typing import Literal

Ablation = Literal["truncated", "shuffled", "foreign", "blind"]
"""How an agent's past can be tampered with, see `ringrl.rollout.ablation`; here, where nothing heavy is imported."""
