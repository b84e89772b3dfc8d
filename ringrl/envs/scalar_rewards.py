"""dm_control's `rewards.tolerance` for a single number, the same bits in a fraction of the time.

The suite's rewards call it for each term of each step, and it takes NumPy's way through arrays: of small models, longer
than MuJoCo's step. Worker processes use this one; in the caller's process dm_control stays as it is.
"""

import functools
import math
from typing import Any

import numpy as np
from dm_control.utils import rewards

_of_arrays, _sigmoid = rewards.tolerance, rewards._sigmoids


def use_scalar_rewards() -> None:
    """Let the tasks of this process use `tolerance`."""
    rewards.tolerance = tolerance


def tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """`dm_control.utils.rewards.tolerance`; its arguments, its results, and its ValueError."""
    lower, upper = bounds
    if not (isinstance(x, float) and lower <= upper and margin >= 0) or math.isnan(x):
        return _of_arrays(x, bounds, margin, sigmoid, value_at_margin)
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    distance = np.float64(lower - x if x < lower else x - upper) / margin
    if sigmoid == "gaussian" and 0 < value_at_margin < 1:
        return float(np.exp(-0.5 * (distance * _gaussian_scale(value_at_margin)) ** 2))
    return float(_sigmoid(distance, value_at_margin, sigmoid))


@functools.cache
def _gaussian_scale(value_at_margin: float) -> np.float64:
    return np.sqrt(-2 * np.log(value_at_margin))
