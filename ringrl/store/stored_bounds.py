"""What a store's numbers must be: within the bounds of an `Episode`.

What `build` writes was an `Episode`, and checksums say that it is unchanged. What another program has written into a
store, or an earlier ringrl from episodes that it let pass, was not: so numbers are compared once, as they are read.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ringrl.episode import ACTION_LIMIT, MAGNITUDE_LIMIT
from ringrl.store.metadata import unreadable

_ANY = float(np.finfo(np.float64).max)


def check_bounds(path: Path | str, name: str, rows: Shaped[np.ndarray, "rows *width"], observation: int) -> None:
    """Raise UserError where rows of an array of a store are not numbers of an `Episode`.

    Args:
        path: the store.
        name: of the array.
        rows: of it; NaN and infinite ones are found too.
        observation: width of the observations, with which rows of `transition` begin.
    """
    if rows.dtype.kind != "f" or not rows.size:
        return
    lowest, highest = np.atleast_1d(rows.min(axis=0)), np.atleast_1d(rows.max(axis=0))  # of every column
    for part, at, limit in _parts(name, observation):
        size = float(np.maximum(highest[at], -lowest[at]).max())
        if not size <= limit:  # as it is not where one is NaN
            shown = f"{size:g} in size, beyond {limit:g}" if np.isfinite(size) else "NaN or infinite"
            raise unreadable(path, f"{part} is {shown}: no episode has such numbers")
    if name == "transition" and lowest[-1] < 0:
        raise unreadable(path, f"discount is {lowest[-1]:g}, outside [0, 1]")


def _parts(name: str, observation: int) -> list[tuple[str, slice, float]]:
    """(what, its columns, the largest size that its numbers may have) of what an array contains."""
    if name == "transition":
        action, discount = slice(observation, -1), slice(-1, None)
        sizes = ("observation", slice(observation), MAGNITUDE_LIMIT), ("an action", action, ACTION_LIMIT)
        return [*sizes, ("discount", discount, 1.0)]
    if name == "demonstrator":
        return [("a demonstrator's action", slice(None), ACTION_LIMIT)]
    limited = name == "physics" or name.startswith("reward/")  # a return is a sum, a feature of any unit
    return [(name, slice(None), MAGNITUDE_LIMIT if limited else _ANY)]
