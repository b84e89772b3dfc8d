"""Which tasks there are (dm_control's suite, ExoRL's own, Gymnasium's), and how one is loaded."""

import difflib
import logging
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment

from ringrl.envs.compiled_models import compiled_once
from ringrl.envs.custom import CUSTOM, FAMILIES
from ringrl.envs.custom.library import make_library, with_cues
from ringrl.envs.custom.reward_family import RewardFamily
from ringrl.envs.gymnasium_box import GymnasiumBox, find_spec, split_id, versions_of
from ringrl.envs.gymnasium_mujoco import GymnasiumMujoco, gymnasium_tasks
from ringrl.errors import UserError

# The suite's lqr tasks run for ever; a trial must end, so they get the length of the others.
_UNLIMITED_TASK_STEPS = 1000
_DM_CONTROL = {
    f"{domain}_{name}": (domain, name)
    for domain in sorted({*suite.TASKS_BY_DOMAIN, *CUSTOM})
    for name in (*suite.TASKS_BY_DOMAIN.get(domain, ()), *CUSTOM.get(domain, ()))
}
_LIBRARY = re.compile(r"library([1-9][0-9]{0,2})_(.+)", re.ASCII)
_GYMNASIUM = gymnasium_tasks()
_TASKS = {**_DM_CONTROL, **_GYMNASIUM}


def domains() -> tuple[str, ...]:
    """The domains with physics states: dm_control's and ExoRL's in alphabetical order, then Gymnasium's MuJoCo."""
    return tuple(dict.fromkeys(domain for domain, _ in _TASKS.values()))


def tasks(domain: str) -> tuple[str, ...]:
    """The task ids of a domain, for example `cartpole_swingup`.

    They are in the suite's order, then ExoRL's own; Gymnasium's are the versions of an environment, newest first.

    Raises:
        UserError: if there is no such domain, or its module cannot be imported.
    """
    found = tuple(task_id for task_id, (of, _) in _TASKS.items() if of == domain)
    if of_libraries := _LIBRARY.fullmatch(domain):
        known = (family for family in FAMILIES.values() if family.domain == of_libraries[2])
        found = tuple(f"library{of_libraries[1]}_{family.name}" for family in known)
    found = found or versions_of(domain)
    if not found:
        raise UserError(f"unknown domain {domain!r}: {_suggest(domain, domains())}")
    return found


def is_gymnasium(domain: str) -> bool:
    """Whether a domain is of Gymnasium's environments, whose rewards do not follow from stored states."""
    return ":" in domain or bool(versions_of(domain))


def split_task(task_id: str) -> tuple[str, str]:
    """The (domain, task name) of a task id: `ball_in_cup_catch` is (`ball_in_cup`, `catch`).

    Gymnasium's `Hopper-v5` is (`Hopper`, `v5`), and `my_module:Rig-v0` (`my_module:Rig`, `v0`). A library's
    `library8_point_mass_field` is (`library8_point_mass`, `field`).

    Raises:
        UserError: if there is no such task; it lists the nearest names. And if a module cannot be imported.
    """
    if task_id in _TASKS:
        return _TASKS[task_id]
    if (library := _library(task_id)) is not None:
        members, family = library
        return f"library{members}_{family.domain}", family.name.removeprefix(f"{family.domain}_")
    if find_spec(task_id) is None:
        raise UserError(f"unknown task {task_id!r}: {_suggest(task_id, _TASKS, gymnasium.registry)}")
    return split_id(task_id)


def is_task(task_id: str) -> bool:
    """Whether there is an environment of dm_control's, ExoRL's, ours or Gymnasium's MuJoCo of that id."""
    return task_id in _TASKS or _library(task_id) is not None


def is_hidden(task_id: str) -> bool:
    """Whether an environment's seed decides its task, as in hidden tasks, their visible twins and libraries.

    Raises:
        UserError: as `split_task`.
    """
    return split_task(task_id)[0].startswith(("hidden_", "visible_")) or _library(task_id) is not None


def is_visible(task_id: str) -> bool:
    """Whether a task is a hidden task's visible twin, whose observation ends with what is hidden.

    Raises:
        UserError: as `split_task`.
    """
    return split_task(task_id)[0].startswith("visible_")


def family_of(task_id: str) -> RewardFamily | None:
    """The family of rewards of which a task's environments are members, a library's with cues; None: of none.

    Raises:
        UserError: as `split_task`.
    """
    if (library := _library(task_id)) is not None:
        return with_cues(library[1])
    return FAMILIES.get(task_id.partition("_")[2]) if is_hidden(task_id) else None


def members_in(task_id: str) -> int | None:
    """How many members an environment of a library has (`ringrl.envs.custom.library`); None: it is no library."""
    library = _library(task_id)
    return None if library is None else library[0]


def _library(task_id: str) -> tuple[int, RewardFamily] | None:
    """How many members, and of which family, the task `libraryM_NAME` has; None: it is no library's."""
    found = _LIBRARY.fullmatch(task_id)
    return (int(found[1]), FAMILIES[found[2]]) if found and found[2] in FAMILIES else None


def _suggest(name: str, known: Iterable[str], more: Iterable[str] = ()) -> str:
    near = difflib.get_close_matches(name, dict.fromkeys((*known, *more)), n=4, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(known)}"


def load(
    task_id: str,
    seed: int,
    time_limit: int | None = None,
    render_mode: str | None = None,
    parameter: Sequence[Any] | np.ndarray | None = None,
) -> Environment | GymnasiumBox:
    """The environment of a task with dm_control's interface; its episodes end.

    Args:
        task_id: such as `cartpole_swingup`.
        seed: of the initial states; of hidden tasks, of what is hidden too.
        time_limit: environment steps in an episode; None for the task's own number.
        render_mode: what environments that render themselves are made with.
        parameter: of a family's task, the member, [P], of a library all of them, [M, P]; None: the seed's.

    Raises:
        UserError: if there is no such task, Gymnasium cannot make it here, it has other spaces than Box, or no time
            limit; and if the seed of a hidden task is below 0 or above 2**32 - 1.
    """
    domain, name = split_task(task_id)
    if is_hidden(task_id) and not 0 <= seed < 2**32:  # to wrap it would mix training and held-out tasks
        raise UserError(f"seed {seed}: the seeds of {task_id} go from 0 to {2**32 - 1}; give one of those")
    seed %= 2**32
    custom: Any = CUSTOM.get(domain, {}).get(name)
    if (library := _library(task_id)) is not None:
        custom = partial(make_library, with_cues(library[1]), library[0])
    if parameter is not None:
        if family_of(task_id) is None or custom is None:
            raise UserError(f"parameter: {task_id} is no family of rewards; leave it out")
        custom = partial(custom, parameter=parameter)
    log = logging.getLogger("absl")
    level = log.level
    # MuJoCo finds fault with attributes of these model files, which is nothing to the user.
    log.setLevel(logging.ERROR)
    try:
        if task_id in _GYMNASIUM:
            return GymnasiumMujoco(task_id, seed, time_limit)
        if task_id not in _TASKS and library is None:
            return GymnasiumBox(task_id, seed, time_limit, render_mode)
        with compiled_once():
            environment = suite.load(domain, name, task_kwargs={"random": seed}) if custom is None else custom(seed)
    finally:
        log.setLevel(level)
    # dm_control takes seconds, and divides them by an environment step's: the number of steps itself is not rounded.
    if time_limit is not None or not math.isfinite(environment._step_limit):
        environment._step_limit = float(time_limit or _UNLIMITED_TASK_STEPS)
    return environment
