"""ExoRL's tasks that dm_control's suite does not have (Yarats et al. 2022; URLB, Laskin et al. 2021), and families.

Each module of tasks gives `TASKS`: a task's name -> a function that makes its environment from the seed of its initial
states. All are dm_control's own `Environment`, `Physics` and `Task`, and each reward is a function of state and action
alone.
"""

from collections.abc import Callable
from functools import partial

from dm_control.rl.control import Environment

from ringrl.envs.custom import (
    cheetah,
    goal_families,
    hidden,
    hopper,
    jaco,
    planar_motion,
    point_mass_maze,
    pose_families,
    quadruped,
    quadruped_motion,
    reacher_arm,
    speed_families,
    walker,
)
from ringrl.envs.custom.reward_family import RewardFamily, make_member

_MOTION = (planar_motion.WALKER, planar_motion.CHEETAH, quadruped_motion.QUADRUPED)
_SPEED = (speed_families.WALKER, speed_families.CHEETAH)
FAMILIES: dict[str, RewardFamily] = {
    family.name: family for family in (*goal_families.FAMILIES, *pose_families.FAMILIES, *_MOTION, *_SPEED)
}
"""Families of rewards by name; their tasks are `hidden_NAME` and `visible_NAME`."""

CUSTOM: dict[str, dict[str, Callable[[int], Environment]]] = {
    "cheetah": cheetah.TASKS,
    "hopper": hopper.TASKS,
    "jaco": jaco.TASKS,
    "point_mass_maze": point_mass_maze.TASKS,
    "quadruped": quadruped.TASKS,
    "reacher_arm": reacher_arm.TASKS,
    "walker": walker.TASKS,
    **{domain: dict(tasks) for domain, tasks in hidden.DOMAINS.items()},  # to which those of families are added
}
"""Domain -> task name -> environment of a seed."""

for _family in FAMILIES.values():
    for _kind in ("hidden", "visible"):
        _tasks = CUSTOM.setdefault(f"{_kind}_{_family.domain}", {})
        _tasks[_family.name.removeprefix(f"{_family.domain}_")] = partial(make_member, _family, _kind == "visible")
