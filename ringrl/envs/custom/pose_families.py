"""Families of poses of the suite's cartpole: where the cart and how the pole should be, paid as the suite pays.

An angle is given by its sine and cosine, so that poses close to each other have close parameters.
"""

from typing import Any

import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment
from jaxtyping import Bool, Float64

from ringrl.envs.custom.reward_family import RewardFamily

Rows = Float64[np.ndarray, "n _columns"]

_TRACK = 1.5  # m: carts go to 1.8 either way
_CART_RANGE, _COSINE_RANGE = 0.25, 0.995  # of the suite's sparse rewards: m, and 5.7 degrees
_NEAR_CART, _NEAR_COSINE = 0.5, 0.9  # of the canonical pose: no other member is so near, m and 26 degrees
_CART_MARGIN, _VELOCITY_MARGIN = 2.0, 5.0  # m, rad/s: of the dense rewards


def _swingup(seed: int) -> Environment:
    return suite.load("cartpole", "swingup", task_kwargs={"random": seed})


def _read(physics: Any) -> Any:
    pole, control = physics.named.data.xmat["pole_1", ["xz", "zz"]], physics.control()[0]
    return physics.cart_position(), pole[0], pole[1], physics.angular_vel()[0], 1.0 - control * control


def _off(features: np.ndarray, parameter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the cart is from its position, m, and the cosine of the angle between the pole and its own."""
    cosine = features[..., 1] * parameter[..., 1] + features[..., 2] * parameter[..., 2]
    return features[..., 0] - parameter[..., 0], cosine


def _sparse(features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    off, cosine = _off(features, parameter)
    return 1.0 * ((np.abs(off) <= _CART_RANGE) & (cosine >= _COSINE_RANGE))


def _dense(features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    off, cosine = _off(features, parameter)
    # Two unit vectors of float32 may give a product just above 1.
    aligned = (np.clip(cosine, -1.0, 1.0) + 1.0) / 2.0
    centred, slow = _gaussian(off / _CART_MARGIN), _gaussian(features[..., 3] / _VELOCITY_MARGIN)
    return aligned * ((4.0 + features[..., 4]) / 5.0) * ((1.0 + slow) / 2.0) * ((1.0 + centred) / 2.0)


def _gaussian(off: np.ndarray) -> np.ndarray:
    return np.exp(np.log(0.1) * np.square(off))


def _draw(rng: np.random.Generator, count: int) -> Rows:
    angle = rng.uniform(-np.pi, np.pi, count)
    return np.stack([rng.uniform(-_TRACK, _TRACK, count), np.sin(angle), np.cos(angle)], axis=1)


def _near(members: Rows, canonical: np.ndarray) -> Bool[np.ndarray, " n"]:
    off, cosine = _off(members, canonical)
    return (np.abs(off) < _NEAR_CART) & (cosine > _NEAR_COSINE)


def _pose(name: str, pay: Any, tasks: tuple[str, ...]) -> RewardFamily:
    return RewardFamily(
        name=name,
        domain="cartpole",
        base=_swingup,
        features=("cart", "sine", "cosine", "angular_velocity", "ease"),
        parameters=("cart", "sine", "cosine"),
        read=_read,
        pay=pay,
        draw=_draw,
        fit=lambda rng, features: features[:, :3].copy(),
        canonical={f"cartpole_{task}": (0.0, 0.0, 1.0) for task in tasks},
        near=_near,
    )


FAMILIES = (
    _pose("cartpole_pose", _sparse, ("balance_sparse", "swingup_sparse")),
    _pose("cartpole_pose_dense", _dense, ("balance", "swingup")),
)
