"""Families of goals: a hidden place, paid as ExoRL's maze pays (Yarats et al. 2022), nothing anywhere else.

The arm's finger is paid as by the suite's reacher: all or nothing. A field has many goals, each worth something else.
Goals and fields of the point mass pay exactly 0 where they would pay less than a thousandth. A Gaussian never ends:
its least rewards tell where a goal is to whoever compares rewards of any size, and tell nothing to a model that sees
them beside numbers of order 1. The maze and jaco have tasks of ExoRL as members, so they pay as these do, to the end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment
from jaxtyping import Bool, Float64

from ringrl.envs.custom import jaco, point_mass_maze, reacher_arm
from ringrl.envs.custom.reward_family import RewardFamily

Rows = Float64[np.ndarray, "n _columns"]
Draw = Callable[[np.random.Generator, int], Rows]

_ARENA = 0.26  # m, half the side of the square in which goals lie; a point mass moves within 0.29
_TRIAL = 8.0  # s; a point mass crosses the arena in 6
_LEAST = 1e-3  # of the rewards of goals that no task sets; less is 0
_MAZE_RADIUS = 0.015  # m, as in ExoRL
_MAZE_APART = 0.05  # m: so near a goal of ExoRL's tasks no other goal lies; 4.5 cm off these pay 0.01
_WALL, _WALL_END = 0.03, 0.20  # m, from the cross's axes and middle; its half-widths with the mass's radius
_ARM_REACH = (0.05, 0.20)  # m, of targets from the shoulder, as in the suite
_ARM_APART = 0.05  # m: twice the distance at which a finger touches a target of 1.5 cm
_JACO_RADIUS, _JACO_APART = 0.05, 0.15  # m
_JACO_BOX = ((-0.2, -0.2, 0.001), (0.2, 0.2, 0.3))  # m: where a hand starts, down to the table
_BUMPS, _BUMP_RADIUS = 16, 0.01
_BUMP_END = 2.74 * _BUMP_RADIUS  # from here on a bump, which is at most 1 high, pays less than _LEAST
_RUNG = 0.75  # as high, about, is each of a field's bumps as the one before


def squared_distance(
    place: Float64[np.ndarray, "*#rows d"], goal: Float64[np.ndarray, "*#rows d"]
) -> Float64[np.ndarray, "..."]:
    """In m^2; a coordinate at a time, for a sum over an axis of two or three takes NumPy several times as long."""
    squares = [np.square(place[..., axis] - goal[..., axis]) for axis in range(place.shape[-1])]
    return sum(squares[1:], squares[0])


def distance(
    place: Float64[np.ndarray, "*#rows d"], goal: Float64[np.ndarray, "*#rows d"]
) -> Float64[np.ndarray, "..."]:
    """In m."""
    return np.sqrt(squared_distance(place, goal))


def near_place(
    place: Float64[np.ndarray, "*#rows d"], goal: Float64[np.ndarray, "*#rows d"], radius: float
) -> Float64[np.ndarray, "..."]:
    """1 within `radius` of a goal, a tenth at twice that, and so on as a Gaussian: `rewards.tolerance` of the suite."""
    beyond = np.maximum(distance(place, goal) - radius, 0.0) / radius
    return np.exp(np.log(0.1) * np.square(beyond))


def noticeable(paid: Float64[np.ndarray, "*rows"]) -> Float64[np.ndarray, "..."]:
    """Rewards, with 0 in place of those below a thousandth."""
    return np.where(paid < _LEAST, 0.0, paid)


def within(metres: float) -> Callable[[Rows, np.ndarray], Bool[np.ndarray, " n"]]:
    """Whether goals lie within a distance of a canonical one."""
    return lambda goals, canonical: distance(goals, canonical[None]) < metres


def _point_mass(seed: int) -> Environment:
    return suite.load("point_mass", "easy", task_kwargs={"random": seed, "time_limit": _TRIAL})


def _position(physics: Any) -> Any:
    return physics.data.qpos[:2]


def _in_arena(rng: np.random.Generator, count: int) -> Rows:
    return rng.uniform(-_ARENA, _ARENA, (count, 2))


def _goals_at(rng: np.random.Generator, features: Rows, radius: float, draw: Draw = _in_arena) -> Rows:
    """Goals in the arena that pay at x, y; drawn where none pays a hundredth, as under correlated actions at the walls.

    There the nearest goal is at the arena's edge: most goals of such data would be, and few of those that are drawn.
    """
    place = features[:, :2]
    nearest = np.clip(place, -_ARENA, _ARENA)
    return np.where((near_place(place, nearest, radius) < 0.01)[:, None], draw(rng, len(place)), nearest)


def _point_mass_goal(millimetres: int) -> RewardFamily:
    radius = millimetres / 1000
    return RewardFamily(
        name=f"point_mass_goal_{millimetres}mm",
        domain="point_mass",
        base=_point_mass,
        features=("x", "y"),
        parameters=("goal_x", "goal_y"),
        read=_position,
        pay=lambda features, parameter: noticeable(near_place(features, parameter, radius)),
        draw=_in_arena,
        fit=lambda rng, features: _goals_at(rng, features, radius),
    )


def _field_reward(features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    """The best of height times nearness: bumps that overlap pay no more than the higher one, so never above 1."""
    paid = np.zeros(np.broadcast_shapes(features.shape[:-1], parameter.shape[:-1]))
    for first in range(0, 3 * _BUMPS, 3):
        goal, height = parameter[..., first : first + 2], np.broadcast_to(parameter[..., first + 2], paid.shape)
        squares = squared_distance(features, goal)
        some = squares < _BUMP_END**2  # of 100 pairs of a state and a bump 3: roots and exponentials of all take long
        beyond = np.maximum(np.sqrt(squares[some]) - _BUMP_RADIUS, 0.0) / _BUMP_RADIUS
        paid[some] = np.maximum(paid[some], height[some] * np.exp(np.log(0.1) * np.square(beyond)))
    return noticeable(paid)


def _draw_field(rng: np.random.Generator, count: int) -> Rows:
    """Bumps from 1 high to 0.01, log-uniformly: with each one found, the best found is likely to be better."""
    rung = np.arange(_BUMPS) - np.where(np.arange(_BUMPS) > 0, rng.random((count, _BUMPS)), 0.0)
    bumps = np.concatenate([rng.uniform(-_ARENA, _ARENA, (count, _BUMPS, 2)), _RUNG ** rung[..., None]], axis=2)
    return bumps.reshape(count, 3 * _BUMPS)


def _fit_field(rng: np.random.Generator, features: Rows) -> Rows:
    """A field whose highest bump is there."""
    found = _draw_field(rng, len(features))
    found[:, :2] = _goals_at(rng, features, _BUMP_RADIUS)
    return found


_FIELD = RewardFamily(
    name="point_mass_field",
    domain="point_mass",
    base=_point_mass,
    features=("x", "y"),
    parameters=tuple(f"{of}_{bump}" for bump in range(_BUMPS) for of in ("x", "y", "height")),
    read=_position,
    pay=_field_reward,
    draw=_draw_field,
    fit=_fit_field,
)


def _maze(seed: int) -> Environment:
    return point_mass_maze.TASKS["reach_top_left"](seed)


def _position_and_ease(physics: Any) -> Any:
    control = physics.control()
    return (*physics.data.qpos[:2], 1.0 - (control[0] * control[0] + control[1] * control[1]) / 2.0)


def _in_wall(goals: Rows) -> Bool[np.ndarray, " n"]:
    off = np.abs(goals)
    return (off.min(-1) < _WALL) & (off.max(-1) < _WALL_END)


def _in_maze(rng: np.random.Generator, count: int) -> Rows:
    goals = _in_arena(rng, count)
    while (bad := _in_wall(goals)).any():
        goals[bad] = _in_arena(rng, int(bad.sum()))
    return goals


_MAZE = RewardFamily(
    name="point_mass_maze_goal_15mm",
    domain="point_mass_maze",
    base=_maze,
    features=("x", "y", "ease"),
    parameters=("goal_x", "goal_y"),
    read=_position_and_ease,
    pay=lambda features, parameter: (
        near_place(features[..., :2], parameter, _MAZE_RADIUS) * ((features[..., 2] + 4.0) / 5.0)
    ),
    draw=_in_maze,
    fit=lambda rng, features: _goals_at(rng, features, _MAZE_RADIUS, _in_maze),
    canonical={f"point_mass_maze_{name}": goal[:2] for name, goal in point_mass_maze.GOALS.items()},
    near=within(_MAZE_APART),
)


def _finger(physics: Any) -> Any:
    return physics.named.data.geom_xpos["finger", :2]


def _on_ring(rng: np.random.Generator, count: int) -> Rows:
    """As the suite draws the reacher's targets."""
    radius, angle = rng.uniform(*_ARM_REACH, count), rng.uniform(0, 2 * np.pi, count)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)


def _arm_goal(millimetres: int) -> RewardFamily:
    touching = millimetres / 1000 + reacher_arm.FINGER
    canonical = {f"reacher_arm_{name}": goal for name, goal in reacher_arm.GOALS.items()}
    return RewardFamily(
        name=f"reacher_arm_goal_{millimetres}mm",
        domain="reacher_arm",
        base=lambda seed: reacher_arm.make((0.0, 0.0), seed),
        features=("finger_x", "finger_y"),
        parameters=("target_x", "target_y"),
        read=_finger,
        pay=lambda features, parameter: 1.0 * (distance(features, parameter) <= touching),
        draw=_on_ring,
        fit=lambda rng, features: features.copy(),
        canonical=canonical if millimetres == 1000 * reacher_arm.HARD else {},
        near=within(_ARM_APART),
    )


def _between_fingers(physics: Any) -> Any:
    return physics.named.data.site_xpos[jaco.BETWEEN_FINGERS]


_JACO = RewardFamily(
    name="jaco_goal_50mm",
    domain="jaco",
    base=jaco.TASKS["reach_top_left"],
    features=("x", "y", "z"),
    parameters=("goal_x", "goal_y", "goal_z"),
    read=_between_fingers,
    pay=lambda features, parameter: near_place(features, parameter, _JACO_RADIUS),
    draw=lambda rng, count: rng.uniform(*_JACO_BOX, (count, 3)),
    fit=lambda rng, features: np.clip(features, *_JACO_BOX),
    canonical={f"jaco_{name}": goal for name, goal in jaco.GOALS.items()},
    near=within(_JACO_APART),
)

FAMILIES = (
    *(_point_mass_goal(millimetres) for millimetres in (10, 15, 30)),
    _FIELD,
    _MAZE,
    *(_arm_goal(millimetres) for millimetres in (15, 50)),
    _JACO,
)
