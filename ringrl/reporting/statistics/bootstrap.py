"""Statistics of returns with their 95 % intervals. Deterministic: every bootstrap starts from the same seed.

One training seed: BCa bootstrap over environments (`scipy.stats.bootstrap`; Efron 1987). Several seeds: the pigeonhole
bootstrap (Owen 2007), which resamples seeds and environments at once. Environments of one trained network are no
independent evidence about training, and seeds evaluated in the same environments share their luck; treating all returns
as independent would overlook both. IQM: Agarwal et al. 2021.

Differences between agents, and aggregates over tasks, share their resamples: within a task, training seeds are
resampled for each agent by itself, environments for all agents at once. Over tasks this is the stratified bootstrap of
Agarwal et al. (2021, section 4.3), which resamples runs within each task, here with environments as the second factor
(Owen 2007).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import scipy.stats
from jaxtyping import Float64

CONFIDENCE = 0.95
RESAMPLES = 4000
# With 5 paired differences even 5 of one sign happen by chance in 1 of 16 cases; with 6 it is 1 of 32, below 5 %.
PAIRS_FOR_VERDICT = 6

Statistic = Callable[..., np.ndarray | np.floating]  # (values, axis) -> values with that axis reduced


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; `low` and `high` are NaN where one unit allows none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; False without an interval."""
        return self.has_interval and (self.low > 0 or self.high < 0)

    def scaled(self, zero: float, hundred: float) -> "Estimate":
        """The same on the scale where `zero` is 0 and `hundred` (> zero) is 100; both are taken as exactly known."""
        return Estimate(*(100 * (number - zero) / (hundred - zero) for number in (self.value, self.low, self.high)))


def estimate(values: Float64[np.ndarray, "seeds envs"], statistic: Statistic = np.mean) -> Estimate:
    """`statistic` over all units, with its 95 % bootstrap interval.

    One seed: BCa over environments, or percentile where BCa is undefined; constant data: the value itself. Several
    seeds: percentiles of the pigeonhole bootstrap. A single unit has no interval.
    """
    value = float(statistic(values.reshape(-1), axis=-1))
    if values.size < 2:
        return Estimate(value)
    if np.ptp(values) == 0:
        return Estimate(value, value, value)
    if len(values) > 1:
        low, high = _pigeonhole(values, statistic)
    else:
        low, high = _one_stage(values[0], statistic, "BCa")
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = _one_stage(values[0], statistic, "percentile")
    return Estimate(value, low, high)


def _one_stage(values: Float64[np.ndarray, " envs"], statistic: Statistic, method: str) -> tuple[float, float]:
    with warnings.catch_warnings():
        # BCa divides by zero where resamples or jackknife values do not vary; the caller then takes percentiles.
        warnings.simplefilter("ignore", category=scipy.stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", category=RuntimeWarning)
        result = scipy.stats.bootstrap(
            (values,),
            statistic,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method=method,
            vectorized=True,
            rng=np.random.default_rng(0),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _pigeonhole(values: Float64[np.ndarray, "seeds envs"], statistic: Statistic) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    seeds, envs = values.shape
    seed = rng.integers(seeds, size=(RESAMPLES, seeds, 1))
    env = rng.integers(envs, size=(RESAMPLES, 1, envs))  # the same for all seeds of a resample
    resampled = statistic(values[seed, env].reshape(RESAMPLES, -1), axis=-1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
    """Mean of the middle half, 25 % cut from each end, along `axis`."""
    return scipy.stats.trim_mean(values, 0.25, axis=axis)


def resample_runs(values: Float64[np.ndarray, "seeds envs"], task: str, label: str) -> Float64[np.ndarray, "_ seeds"]:
    """Each run's mean over environments in each of `RESAMPLES` resamples; `label` is whose runs these are.

    The draws depend on the names and on how many there are to draw from, on nothing else in the report.
    """
    seeds, envs = values.shape
    env = _generator(task, str(envs)).integers(envs, size=(RESAMPLES, 1, envs))
    seed = _generator(task, label, "seeds").integers(seeds, size=(RESAMPLES, seeds, 1))
    return values[seed, env].mean(axis=2)


def from_resamples(value: float, resamples: Float64[np.ndarray, " resamples"]) -> Estimate:
    """A value with the percentile interval of its resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resamples, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def difference(
    ours: Float64[np.ndarray, "_ _"], theirs: Float64[np.ndarray, "_ _"], task: str, labels: tuple[str, str]
) -> Estimate:
    """Mean of `ours` [seeds, envs] minus mean of `theirs` [seeds, envs], two agents on one task; no interval where
    either is a single unit."""
    value = float(ours.mean() - theirs.mean())
    if min(ours.size, theirs.size) < 2:
        return Estimate(value)
    draws = (resample_runs(each, task, label).mean(axis=1) for each, label in zip((ours, theirs), labels, strict=True))
    return from_resamples(value, next(draws) - next(draws))


def shown_above(number: Estimate, units: int) -> bool | None:
    """Whether a difference is above 0 (True) or below (False); None: not shown, or too few units to tell."""
    if units < PAIRS_FOR_VERDICT or not number.excludes_zero or not math.isfinite(number.value):
        return None
    return number.value > 0


def _generator(*names: str) -> np.random.Generator:
    return np.random.default_rng([crc32(name.encode()) for name in names])


def show(number: Estimate, signed: bool = False) -> str:
    """`812 [790, 830]`, rounded alike; `812` if there is no interval."""
    text = show_number(number.value, number, signed)
    if not number.has_interval:
        return text
    return f"{text} [{show_number(number.low, number, signed)}, {show_number(number.high, number, signed)}]"


def show_number(value: float, like: Estimate | None = None, signed: bool = False) -> str:
    """A number with as many decimals as the magnitude of `like` (or its own) deserves, and a true minus sign."""
    largest = max((abs(x) for x in (like.value, like.low, like.high) if math.isfinite(x)), default=0) if like else value
    decimals = 0 if abs(largest) >= 100 else 1 if abs(largest) >= 10 else 2
    text = f"{round(value, decimals) + 0.0:{'+' if signed else ''},.{decimals}f}"
    return text.replace("-", "\u2212")
