"""Trained agents in real environments: many trials in one context."""

from ringrl.config import Ablation

__all__ = ["Ablation"]
