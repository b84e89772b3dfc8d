"""The family of motion of the suite's quadruped: products of what is asked of its speed, turning, height and posture.

All factors are linear (`ringrl.envs.custom.motion_terms`). Forces at the toes, which MuJoCo computes before it reaches
the state that files hold, are not among the features, nor is the order in which feet touch the floor.
"""

from typing import Any

import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment

from ringrl.envs.custom.canonical_states import paid_by_doing
from ringrl.envs.custom.motion_terms import NOTHING, WIDTH, Quantity, alike, at_least, counting, linear
from ringrl.envs.custom.reward_family import RewardFamily

_QUANTITIES = (
    Quantity("forward", (0.3, 6.0), chance=0.4),
    Quantity("speed", (0.3, 6.0), chance=0.2, negative=0.0),
    Quantity("turn", (0.5, 4.0), chance=0.2),
    Quantity("height", (0.2, 1.2), chance=0.25, negative=0.0, size=0.5, either_side=True),
    Quantity("upright", (0.5, 1.0), chance=0.7, negative=0.15, size=2.0),
)
_UPRIGHT = len(_QUANTITIES) - 1  # the factor of the posture comes last
_TALL = 0.55  # m, the height of the centre of mass on its feet
_ON_THE_WAY = np.linspace(0.0, 1.0, 5)  # of what a canonical task asks


def _base(seed: int) -> Environment:
    return suite.load("quadruped", "walk", task_kwargs={"random": seed})


def _read(physics: Any) -> Any:
    data, velocity = physics.named.data, physics.torso_velocity()
    return (
        velocity[0],
        np.linalg.norm(velocity),
        data.sensordata["imu_gyro"][2],
        data.sensordata["center_of_mass"][2],
        data.xmat["torso", "zz"],
    )


def _columns(quantity: int) -> slice:
    return slice(WIDTH * quantity, WIDTH * (quantity + 1))


def _pay(features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    paid = linear(features[..., 0], parameter[..., _columns(0)])
    for quantity in range(1, len(_QUANTITIES)):
        paid = paid * linear(features[..., quantity], parameter[..., _columns(quantity)])
    return paid


def _members(rng: np.random.Generator, factors: list[np.ndarray]) -> np.ndarray:
    counts = counting(rng, _QUANTITIES, len(factors[0]))
    return np.concatenate([factor * counts[:, i, None] for i, factor in enumerate(factors)], axis=1)


def _draw(rng: np.random.Generator, count: int) -> np.ndarray:
    return _members(rng, [quantity.draw(rng, count) for quantity in _QUANTITIES])


def _fit(rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
    return _members(rng, [quantity.fit(rng, features[:, i]) for i, quantity in enumerate(_QUANTITIES)])


def _states(canonical: np.ndarray) -> np.ndarray:
    """From lying on its back or side to still and upright, and from there to what the task asks."""
    forward, speed, turn, height = canonical[: WIDTH * _UPRIGHT : WIDTH]
    moves = canonical[: WIDTH * _UPRIGHT].any()
    end = np.array([forward, max(abs(forward), speed), turn, height or _TALL, 1.0])
    still = np.array([0.0, 0.0, 0.0, _TALL, 1.0])
    lying = [(0.0, 0.0, 0.0, 0.2, -1.0), (0.0, 0.0, 0.0, 0.3, 0.0)]
    return np.array([*lying, *(still + part * (end - still) for part in (_ON_THE_WAY if moves else np.zeros(1)))])


def _near(members: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Whether the same is asked for (`_alike`), or the member is paid by doing the task."""
    return _alike(members, canonical) | paid_by_doing(_pay, members, canonical, _states(canonical))


def _alike(members: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Whether the same motion and height are asked for, in any posture; where none is, the same posture."""
    found = np.ones(len(members), bool)
    for quantity in range(_UPRIGHT + (not canonical[: WIDTH * _UPRIGHT].any())):
        found &= alike(members[:, _columns(quantity)], canonical[_columns(quantity)])
    return found


def _canonical(quantity: int | None, target: float = 0.0, slope: float = 0.0) -> tuple[float, ...]:
    """Upright, and a quantity that reaches its target; half as much is paid where it is 0."""
    factors = [at_least(target, slope) if each == quantity else NOTHING for each in range(_UPRIGHT)]
    return tuple(number for factor in (*factors, at_least(1.0, 0.5)) for number in factor)


QUADRUPED = RewardFamily(
    name="quadruped_motion",
    domain="quadruped",
    base=_base,
    features=tuple(quantity.name for quantity in _QUANTITIES),
    parameters=tuple(name for quantity in _QUANTITIES for name in quantity.parameters),
    read=_read,
    pay=_pay,
    draw=_draw,
    fit=_fit,
    canonical={
        "quadruped_walk": _canonical(0, 0.5, 1.0),
        "quadruped_run": _canonical(0, 5.0, 0.1),
        "quadruped_stand": _canonical(None),
        "quadruped_jump": _canonical(3, 1.0, 0.5),
        "quadruped_roll": _canonical(1, 0.5, 1.0),
        "quadruped_roll_fast": _canonical(1, 5.0, 0.1),
    },
    near=_near,
)
