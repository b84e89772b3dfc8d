"""What readers of other projects' data sets share: which actions become -1 and 1."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Shaped

from ringrl.envs import domains, make_env, split_task, tasks
from ringrl.envs.action_bounds import linear_bounds
from ringrl.errors import UserError

Bounds = tuple[Float64[np.ndarray, " action"], Float64[np.ndarray, " action"]]
"""The actions that become -1 and 1."""


def domain_of(task: str) -> str:
    """The domain of a task; of a task unknown to `ringrl.envs`, its name without a version."""
    known = {task_id for domain in domains() for task_id in tasks(domain)}
    return split_task(task)[0] if task in known else re.sub(r"-v\d+$", "", task)


def to_unit(action: Shaped[np.ndarray, "steps action"], bounds: Bounds) -> Float64[np.ndarray, "steps action"]:
    """Actions as a data set has them, mapped from `bounds` onto [-1, 1]; those beyond stay beyond.

    Raises:
        UserError: if they have not as many numbers as the bounds.
    """
    low, high = bounds
    if action.shape[1] != len(low):
        raise UserError(f"an action has {action.shape[1]} numbers, not {len(low)} as the bounds of actions")
    return (action.astype(np.float64) - (high + low) / 2) / ((high - low) / 2)


def common_task(found: Sequence[tuple[str, str | None]]) -> str:
    """The task that data sets name themselves, given as (name of a data set, its task).

    Raises:
        UserError: if one names none, they name different ones, or a module, which only a user may name: it is run.
    """
    task = found[0][1]
    if not task or any(other != task for _, other in found):
        said = ", ".join(f"{name} of {other or 'none'}" for name, other in found)
        raise UserError(f"the data sets do not name one task ({said}); name it with --task")
    if ":" in task:
        raise UserError(f"{found[0][0]}: its task {task} may be one of a module, which is run; name it with --task")
    return task


def unit_bounds(width: int) -> Bounds:
    """Those of actions that are in [-1, 1] already."""
    return np.full(width, -1.0), np.full(width, 1.0)


def known_bounds(task: str, width: int, low: Sequence[float], high: Sequence[float]) -> Bounds | None:
    """The bounds of actions that a user gives or, if none are given, those of the task's environment.

    Args:
        task: of the data.
        width: numbers in an action.
        low: the actions that become -1, one for all of an action's numbers or one for each; empty: not given.
        high: likewise, those that become 1.

    Returns:
        None if nothing is given and no environment of that name is known here.

    Raises:
        UserError: if only one of the two is given, or they are not as many as an action's numbers, or not in order; if
            the environment cannot be made here, or its actions have another width.
    """
    if low or high:
        if {len(low), len(high)} - {1, width}:
            raise UserError(
                f"--low has {len(low)} numbers and --high {len(high)}: give one each, or one for each of an action's "
                f"{width} numbers"
            )
        ends = (np.broadcast_to(np.asarray(end, np.float64), width) for end in (low, high))
        lowest, highest = ends
        if not (np.isfinite(lowest) & np.isfinite(highest) & (lowest < highest)).all():
            raise UserError("--low must be below --high everywhere, and both must be finite")
        return linear_bounds(lowest, highest)
    try:
        split_task(task)
    except UserError:
        if ":" in task:
            raise
        return None
    try:
        env = make_env(task)
    except UserError as error:
        raise UserError(f"{error}; or give the bounds of the actions, with --low and --high") from error
    lowest, highest = (np.asarray(end, np.float64) for end in env.action_bounds)
    env.close()
    if len(lowest) != width:
        raise UserError(
            f"an action of {task} has {len(lowest)} numbers, one of the data {width}; name the right --task"
        )
    return lowest, highest
