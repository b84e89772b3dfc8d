"""Settings with a few named values that the command line shows; they cost no import of what they are settings of."""

from typing import Literal

Ablation = Literal["truncated", "shuffled", "foreign", "blind", "unpaid", "paid"]
"""How the earlier trials in an agent's context are ablated, see `ringrl.rollout.ablation`."""

WhenFull = Literal["newest", "best", "stop"]
"""What is kept of a full context, see `ringrl.rollout.full_context`."""

TrajectoryOrder = Literal["random", "ascending"]
"""Of the trajectories in a context: as they are drawn, or by return."""

Layout = Literal["contiguous", "striped", "zigzag"]
"""Which device of a ring stores which tokens, see `ringrl.attention.layout`."""
