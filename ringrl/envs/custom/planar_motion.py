"""Families of motion of the suite's cheetah and walker: products of what is asked of speed, spin, height and posture.

    reward = speed * spin * (a height + b posture + c height posture + 1 - a - b - c)

`speed` and `spin` are linear factors (`ringrl.envs.custom.motion_terms`); the spin is the angular momentum about the y
axis. `height` is 1 between two bounds and falls off as a Gaussian. `posture` is 1 at an angle of the torso and falls
with the cosine of the angle to it. Members have one of a, b, c at 1, or none; walker stand is 3/4 of its height and 1/4
of its posture, so canonical tasks pay what the suite and ExoRL pay.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from dm_control import suite
from dm_control.rl.control import Environment

from ringrl.envs.custom.canonical_states import paid_by_doing
from ringrl.envs.custom.motion_terms import (
    NOTHING,
    WIDTH,
    Quantity,
    alike,
    at_least,
    at_most,
    counting,
    linear,
    outside,
)
from ringrl.envs.custom.reward_family import RewardFamily

_MOTION = 2 * WIDTH  # the columns of speed and spin come first
_HEIGHT, _POSTURE = slice(_MOTION, _MOTION + 4), slice(_MOTION + 4, _MOTION + 7)
_BODY = (
    *("height_low", "height_high", "height_rise", "height_fall"),
    *("posture_sine", "posture_cosine", "posture_slope"),
    *("height_weight", "posture_weight", "both_weight"),
)
_BODY_KINDS = (0.3, 0.25, 0.15, 0.3)  # how often nothing, the height, the posture, both are asked of the body
_TURN = 0.2  # rad: so far off a state's angle is that of a member made in hindsight, at most
_ON_THE_WAY = np.linspace(0.0, 1.0, 5)  # of a canonical speed or spin
_LYING = 0.15  # m
_NEAR_HEIGHT, _NEAR_COSINE = 0.3, 0.7  # m and the cosine of 45 degrees: bodies closer to walker stand ask for the same


def _read(physics: Any) -> Any:
    data = physics.named.data
    return (
        data.sensordata["torso_subtreelinvel"][0],
        data.subtree_angmom["torso", "y"],
        data.xpos["torso", "z"],
        data.xmat["torso", "xz"],
        data.xmat["torso", "zz"],
    )


def _pay(features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    motion = linear(features[..., 0], parameter[..., :WIDTH]) * linear(features[..., 1], parameter[..., WIDTH:_MOTION])
    height = np.exp(np.log(0.1) * np.square(outside(features[..., 2], parameter[..., _HEIGHT])))
    sine, cosine, slope = (parameter[..., column] for column in range(_MOTION + 4, _MOTION + 7))
    # Two unit vectors of float32 may give a product just above 1.
    aligned = np.clip(features[..., 3] * sine + features[..., 4] * cosine, -1.0, 1.0)
    posture = np.maximum(1.0 - (1.0 - aligned) * slope, 0.0)
    high, straight, both = (parameter[..., column] for column in range(_MOTION + 7, _MOTION + 10))
    return motion * (high * height + straight * posture + both * (height * posture) + (1.0 - high - straight - both))


@dataclass(frozen=True)
class _Body:
    """How members are drawn for one model."""

    speed: Quantity
    spin: Quantity
    height: Quantity
    tall: float  # m, the height of the torso on its feet

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        angle = rng.uniform(-np.pi, np.pi, count) * np.where(rng.random(count) < 0.5, 0.2, 1.0)  # half nearly upright
        factors = [each.draw(rng, count) for each in (self.speed, self.spin, self.height)]
        return self._members(rng, factors, angle)

    def fit(self, rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
        angle = np.arctan2(features[:, 3], features[:, 4]) + rng.uniform(-_TURN, _TURN, len(features))
        quantities = (self.speed, self.spin, self.height)
        return self._members(rng, [each.fit(rng, features[:, i]) for i, each in enumerate(quantities)], angle)

    def _members(self, rng: np.random.Generator, factors: list[np.ndarray], angle: np.ndarray) -> np.ndarray:
        """Members of which some of the factors count."""
        count = len(angle)
        kind = rng.choice(len(_BODY_KINDS), count, p=_BODY_KINDS)
        # Where nothing is asked of the body, something must be of the motion.
        some = rng.random((count, 2)) < (self.speed.chance, self.spin.chance)
        moves = np.where((kind == 0)[:, None], counting(rng, (self.speed, self.spin), count), some)
        body = (kind[:, None] == (1, 2, 3)).astype(np.float64)
        posture = np.stack([np.sin(angle), np.cos(angle), rng.uniform(0.5, 3.0, count)], axis=1)
        return np.concatenate(
            [
                *(factors[axis] * moves[:, axis, None] for axis in range(2)),
                factors[2][:, :4] * np.isin(kind, (1, 3))[:, None],
                posture * np.isin(kind, (2, 3))[:, None],
                body,
            ],
            axis=1,
        )


def _states(canonical: np.ndarray, height: float) -> np.ndarray:
    """From lying still to still and upright at a height, and from there to what the task asks of speed and spin."""
    speed, spin = canonical[0], canonical[WIDTH]
    way = _ON_THE_WAY if speed or spin else np.zeros(1)
    lying = [(0.0, 0.0, _LYING, side, 0.0) for side in (1.0, -1.0)]
    return np.array([*lying, *((speed * part, spin * part, height, 0.0, 1.0) for part in way)])


def _near(members: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Whether the same motion is asked for, of any body; where none is, the same height and posture, if any."""
    found = alike(members[:, :WIDTH], canonical[:WIDTH]) & alike(members[:, WIDTH:_MOTION], canonical[WIDTH:_MOTION])
    if canonical[:_MOTION].any():
        return found
    high, straight, both = (members[:, column] for column in range(_MOTION + 7, _MOTION + 10))
    low, rise = members[:, _MOTION], members[:, _MOTION + 2]
    as_high = (rise > 0) & (np.abs(low - canonical[_MOTION]) < _NEAR_HEIGHT)
    return found & (as_high | (high + both == 0)) & ((members[:, _MOTION + 5] > _NEAR_COSINE) | (straight + both == 0))


def _family(domain: str, task: str, body: _Body, canonical: dict[str, tuple[float, ...]]) -> RewardFamily:
    def base(seed: int) -> Environment:
        return suite.load(domain, task, task_kwargs={"random": seed})

    def near(members: np.ndarray, known: np.ndarray) -> np.ndarray:
        return _near(members, known) | paid_by_doing(_pay, members, known, _states(known, body.tall))

    return RewardFamily(
        name=f"{domain}_motion",
        domain=domain,
        base=base,
        features=("speed", "spin", "height", "sine", "cosine"),
        parameters=(*body.speed.parameters, *body.spin.parameters, *_BODY),
        read=_read,
        pay=_pay,
        draw=body.draw,
        fit=body.fit,
        canonical={f"{domain}_{name}": member for name, member in canonical.items()},
        near=near,
    )


UPRIGHT = (1.2, 1.2, 1 / 0.6, 0.0, 0.0, 1.0, 0.5, 0.75, 0.25, 0.0)
"""The body of the suite's stand reward: 1.2 m with a margin of 0.6 m, and upright."""
ANY_BODY = (0.0,) * len(_BODY)
"""Nothing is asked of the body."""
SOFT = 5 / 6
"""The weight of the speed in the suite's walker tasks: (5 speed + 1) / 6."""

WALKER = _family(
    "walker",
    "walk",
    _Body(
        Quantity("speed", (0.5, 10.0), chance=0.6),
        Quantity("spin", (1.0, 8.0), chance=0.25),
        Quantity("height", (0.3, 1.4), chance=1.0, negative=0.0, size=0.5, either_side=True),
        tall=1.25,
    ),
    {
        "stand": (*NOTHING, *NOTHING, *UPRIGHT),
        "walk": (*at_least(1.0, 1.0, SOFT), *NOTHING, *UPRIGHT),
        "run": (*at_least(8.0, 1 / 8, SOFT), *NOTHING, *UPRIGHT),
        "flip": (*NOTHING, *at_least(5.0, 1 / 5, SOFT), *UPRIGHT),
    },
)
CHEETAH = _family(
    "cheetah",
    "run",
    _Body(
        Quantity("speed", (0.5, 14.0), chance=0.6),
        Quantity("spin", (1.0, 8.0), chance=0.25),
        Quantity("height", (0.2, 0.9), chance=1.0, negative=0.0, size=0.3, either_side=True),
        tall=0.6,
    ),
    {
        "run": (*at_least(10.0, 1 / 10), *NOTHING, *ANY_BODY),
        "run_backward": (*at_most(-10.0, 1 / 10), *NOTHING, *ANY_BODY),
        "flip": (*NOTHING, *at_least(5.0, 1 / 5), *ANY_BODY),
        "flip_backward": (*NOTHING, *at_most(-5.0, 1 / 5), *ANY_BODY),
    },
)
