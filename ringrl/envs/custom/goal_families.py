"""Families of goals: a hidden place, paid as ExoRL's maze pays (Yarats et al. 2022), nothing anywhere else."""

from typing import Any

import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment
from jaxtyping import Float64

from ringrl.envs.custom.reward_family import RewardFamily

_ARENA = 0.26  # m, half the side of the square in which goals lie; a point mass moves within 0.29


def near_place(
    place: Float64[np.ndarray, "*rows 2"], goal: Float64[np.ndarray, "*rows 2"], radius: float
) -> Float64[np.ndarray, "*rows"]:
    """1 within `radius` of a goal, a tenth at twice that, and so on as a Gaussian: `rewards.tolerance` of the suite."""
    beyond = np.maximum(np.sqrt(np.square(place - goal).sum(-1)) - radius, 0.0) / radius
    return np.exp(np.log(0.1) * np.square(beyond))


_TRIAL = 8.0  # s; a point mass crosses the arena in 6


def _point_mass(seed: int) -> Environment:
    return suite.load("point_mass", "easy", task_kwargs={"random": seed, "time_limit": _TRIAL})


def _position(physics: Any) -> Any:
    return physics.data.qpos[:2]


def _point_mass_goal(millimetres: int) -> RewardFamily:
    radius = millimetres / 1000
    return RewardFamily(
        name=f"point_mass_goal_{millimetres}mm",
        domain="point_mass",
        base=_point_mass,
        features=("x", "y"),
        parameters=("goal_x", "goal_y"),
        read=_position,
        pay=lambda features, parameter: near_place(features, parameter, radius),
        draw=lambda rng, count: rng.uniform(-_ARENA, _ARENA, (count, 2)),
        fit=lambda rng, features: np.clip(features[:, :2], -_ARENA, _ARENA),
    )


FAMILIES = tuple(_point_mass_goal(millimetres) for millimetres in (10, 15, 30))
