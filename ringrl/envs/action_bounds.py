"""Which actions -1 and 1 are: the one rule for environments that are stepped and for data that are imported."""

from typing import Any

import numpy as np
from jaxtyping import Float64

UNBOUNDED = 1e10
"""An interval that is as long as this has no bounds; MuJoCo says so for an actuator without any."""


def linear_bounds(low: Any, high: Any) -> tuple[Float64[np.ndarray, " action"], Float64[np.ndarray, " action"]]:
    """The actions that -1 and 1 are mapped onto, float64 [A] each, from an action space's bounds of any shape.

    They are the bounds; where an action has none, on one side at least, or they are equal, -1 and 1: it is taken as it
    is.
    """
    low, high = (np.asarray(bound, np.float64).ravel() for bound in (low, high))
    bounded = (np.clip(high, -UNBOUNDED, UNBOUNDED) - np.clip(low, -UNBOUNDED, UNBOUNDED)) < UNBOUNDED
    bounded &= high > low
    return np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
