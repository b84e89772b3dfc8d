"""Factors that rewards for motion are products of: a quantity is asked to reach a bound, or to stay between two.

A factor is five numbers, `FACTOR`: between `low` and `high` it is 1; below it falls by `rise`, above by `fall` for each
unit, down to 0. A slope of 0 leaves that side open: `rise` alone asks for at least `low`, `fall` alone for at most
`high`. Of the reward, the share `weight` is multiplied by it: with a weight of 0 the quantity does not count, and all
five are 0. The linear `rewards.tolerance` of the suite is such a factor: its slope is (1 - value_at_margin) / margin.
"""

from dataclasses import dataclass

import numpy as np

FACTOR = ("low", "high", "rise", "fall", "weight")
WIDTH = len(FACTOR)

_SOFT = 5 / 6  # the weight of the speed in the suite's walker tasks
_ALIKE = 0.25  # bounds that differ by less than this share of the canonical one ask for about the same


@dataclass(frozen=True)
class Quantity:
    """What a factor may ask of a feature.

    Attributes:
        name: of the feature.
        targets: the least and the largest size of a bound, in the feature's unit.
        chance: how often it counts.
        negative: how often the target is below 0.
        size: what slopes and widths are measured by; None: the target's own size, and at least `targets[0]`.
        either_side: whether a quantity may also be asked to stay below a bound above 0, as heights are.
    """

    name: str
    targets: tuple[float, float]
    chance: float
    negative: float = 0.5
    size: float | None = None
    either_side: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the five numbers."""
        return tuple(f"{self.name}_{part}" for part in FACTOR)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Factors, [count, 5]."""
        sign = np.where(rng.random(count) < self.negative, -1.0, 1.0)
        target = sign * rng.uniform(*self.targets, count)
        return self._factors(rng, target, self._sides(rng, sign), self._sizes(target))

    def fit(self, rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
        """Factors that are 1 where the feature has a value, [n] -> [n, 5]; about a small one on both of its sides."""
        side = self._sides(rng, np.where(np.abs(value) < self.targets[0], 0.0, np.sign(value)))
        size = self._sizes(value)
        return self._factors(rng, value - side * size * rng.uniform(0.0, 0.4, len(value)), side, size)

    def _sizes(self, target: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(target), self.targets[0]) if self.size is None else np.full(len(target), self.size)

    def _sides(self, rng: np.random.Generator, sign: np.ndarray) -> np.ndarray:
        """1: at least the target, -1: at most, 0: about it."""
        if self.either_side:
            return rng.choice((1.0, 0.0, -1.0), len(sign), p=(0.5, 0.3, 0.2))
        return np.where(rng.random(len(sign)) < 1 / 3, 0.0, sign)

    @staticmethod
    def _factors(rng: np.random.Generator, target: np.ndarray, side: np.ndarray, size: np.ndarray) -> np.ndarray:
        count = len(target)
        half = np.where(side == 0, size * rng.uniform(0.1, 0.3, count), 0.0)
        slope = 1.0 / (size * rng.uniform(0.5, 1.0, count))
        weight = np.where(rng.random(count) < 0.5, 1.0, _SOFT)
        return np.stack([target - half, target + half, slope * (side >= 0), slope * (side <= 0), weight], axis=1)


def counting(rng: np.random.Generator, quantities: tuple[Quantity, ...], count: int) -> np.ndarray:
    """Which quantities count for each of several members, at least one, [count, quantities]."""
    chance = np.array([quantity.chance for quantity in quantities])
    counts = rng.random((count, len(quantities))) < chance
    one = rng.choice(len(quantities), count, p=chance / chance.sum())
    counts[np.arange(count), one] |= ~counts.any(axis=1)
    return counts


def outside(value: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """How far a feature is outside the bounds, in slopes; `factor` is [..., 4 or 5]."""
    below = (factor[..., 0] - value) * factor[..., 2]
    above = (value - factor[..., 1]) * factor[..., 3]
    return np.maximum(np.maximum(below, above), 0.0)


def linear(value: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What a factor is for a feature, [...] and [..., 5] -> [...] in [0, 1]."""
    weight = factor[..., 4]
    return weight * np.maximum(1.0 - outside(value, factor), 0.0) + (1.0 - weight)


def alike(factors: np.ndarray, canonical: np.ndarray) -> np.ndarray:
    """Whether each of [n, 5] asks for about what a canonical factor, [5], asks for, or, like it, does not count."""
    if canonical[4] == 0:
        return factors[:, 4] == 0
    found = factors[:, 4] > 0
    for bound, slope in ((0, 2), (1, 3)):
        if canonical[slope] > 0:
            close = np.abs(factors[:, bound] - canonical[bound]) < _ALIKE * np.abs(canonical[bound])
            found &= close & (factors[:, slope] > 0)
    return found


def at_least(bound: float, slope: float, weight: float = 1.0) -> tuple[float, ...]:
    """The factor of a canonical task whose quantity reaches a bound."""
    return bound, bound, slope, 0.0, weight


def at_most(bound: float, slope: float, weight: float = 1.0) -> tuple[float, ...]:
    """The same, to the other side."""
    return bound, bound, 0.0, slope, weight


NOTHING = (0.0,) * WIDTH
"""The factor of a quantity that does not count."""
