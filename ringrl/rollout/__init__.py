"""Trained agents in real environments: many trials in one context."""

from typing import Literal

Ablation = Literal["truncated", "shuffled", "foreign", "blind"]
"""Context ablations, see `ringrl.rollout.ablation`; here, where nothing heavy is imported."""
