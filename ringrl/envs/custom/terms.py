"""Terms that several custom rewards are made of."""

from typing import Any

from dm_control.utils import rewards

_SPIN = 5.0  # angular momentum about the y axis, kg m^2/s


def at_least(value: Any, target: float, *, margin: float, value_at_margin: float) -> Any:
    """1 where `value` reaches `target`, falling linearly below it: `value_at_margin` at `target - margin`, then 0."""
    return rewards.tolerance(
        value, bounds=(target, float("inf")), margin=margin, value_at_margin=value_at_margin, sigmoid="linear"
    )


def spinning(physics: Any, direction: int) -> Any:
    """How fast a planar body turns about the y axis: 1 from 5 kg m^2/s on, 0 if it rests or turns the other way.

    Args:
        physics: of a model whose root body is `torso` and which has a sensor of a subtree's velocity; without one
            MuJoCo leaves `subtree_angmom` at zero.
        direction: 1 or -1.
    """
    momentum = direction * physics.named.data.subtree_angmom["torso", "y"]
    return at_least(momentum, _SPIN, margin=_SPIN, value_at_margin=0.0)
