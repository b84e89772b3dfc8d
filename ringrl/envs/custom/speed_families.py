"""Families of speed of the suite's cheetah and walker: how fast to run or to turn over, and which way.

A member is two bounds, of the speed and of the angular momentum about the y axis; a bound of 0 asks for nothing.

    reward = body * r(speed / speed_bound) * r(spin / spin_bound),    r(x) = w clip(x, 0, 1) + 1 - w

The cheetah's `body` and w are 1; the walker's w is 5/6, and its body is the suite's stand reward, as in the canonical
tasks. So these are members of the wider families of `ringrl.envs.custom.planar_motion`, and what is asked of bodies is
the same for all of them: two numbers are learnt from far less training than twenty.
"""

from dataclasses import dataclass

import numpy as np

from ringrl.envs.custom import planar_motion
from ringrl.envs.custom.reward_family import RewardFamily

_KINDS = (0.5, 0.35, 0.15)  # how often the speed alone, the spin alone, and both count
_COUNTS = np.array([[True, False], [False, True], [True, True]])
_NEAR = 0.25  # bounds that differ by less than this share of the canonical one are in its neighbourhood
_REACHED = (0.6, 1.0)  # of what a state has: the bound of a member made in hindsight


@dataclass(frozen=True)
class _Bounds:
    """What members ask of a body."""

    wide: RewardFamily  # of which they are members
    weight: float  # w
    body: tuple[float, ...]  # the part of the wide family's parameter that is the body's
    speed: tuple[float, float]  # m/s, the least and the largest size of a bound
    spin: tuple[float, float]  # kg m^2 / s

    def pay(self, features: np.ndarray, parameter: np.ndarray) -> np.ndarray:
        factors = [self._factor(parameter[..., axis]) for axis in range(2)]
        body = np.broadcast_to(self.body, (*parameter.shape[:-1], len(self.body)))
        return self.wide.pay(features, np.concatenate([*factors, body], axis=-1))

    def _factor(self, bound: np.ndarray) -> np.ndarray:
        """The wide family's numbers of a bound: reached, or fallen below by the size of it at most."""
        counts = bound != 0
        slope = counts / np.where(counts, np.abs(bound), 1.0)
        return np.stack([bound, bound, slope * (bound > 0), slope * (bound < 0), self.weight * counts], axis=-1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        sizes = np.stack([rng.uniform(*each, count) for each in (self.speed, self.spin)], axis=1)
        return np.where(self._counts(rng, count), sizes * rng.choice((-1.0, 1.0), (count, 2)), 0.0)

    def fit(self, rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
        reached = features[:, :2] * rng.uniform(*_REACHED, (len(features), 2))
        sizes = np.clip(np.abs(reached), *np.transpose((self.speed, self.spin)))
        return np.where(self._counts(rng, len(features)), np.where(reached < 0, -sizes, sizes), 0.0)

    @staticmethod
    def _counts(rng: np.random.Generator, count: int) -> np.ndarray:
        return _COUNTS[rng.choice(len(_KINDS), count, p=_KINDS)]


def _near(members: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Whether the same is asked for, by about the same bounds."""
    close = np.abs(members - canonical) < _NEAR * np.abs(canonical)
    return np.all(np.where(canonical == 0, members == 0, close), axis=1)


def _family(bounds: _Bounds, canonical: dict[str, tuple[float, float]]) -> RewardFamily:
    wide = bounds.wide
    return RewardFamily(
        name=f"{wide.domain}_speed",
        domain=wide.domain,
        base=wide.base,
        features=wide.features,
        parameters=("speed", "spin"),
        read=wide.read,
        pay=bounds.pay,
        draw=bounds.draw,
        fit=bounds.fit,
        canonical={f"{wide.domain}_{name}": member for name, member in canonical.items()},
        near=_near,
    )


WALKER = _family(
    _Bounds(planar_motion.WALKER, planar_motion.SOFT, planar_motion.UPRIGHT, speed=(0.5, 10.0), spin=(1.0, 8.0)),
    {"stand": (0.0, 0.0), "walk": (1.0, 0.0), "run": (8.0, 0.0), "flip": (0.0, 5.0)},
)
CHEETAH = _family(
    _Bounds(planar_motion.CHEETAH, 1.0, planar_motion.ANY_BODY, speed=(0.5, 14.0), spin=(1.0, 8.0)),
    {"run": (10.0, 0.0), "run_backward": (-10.0, 0.0), "flip": (0.0, 5.0), "flip_backward": (0.0, -5.0)},
)
