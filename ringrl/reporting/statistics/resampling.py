"""Bootstrap resamples that several quantities share: differences between agents, and aggregates over tasks.

Within a task, training seeds are resampled for each agent by itself, environments for all agents at once, because
agents evaluated in the same environments share their luck. Over tasks this is the stratified bootstrap of Agarwal et
al. (2021, section 4.3), which resamples runs within each task, here with environments as the second factor (Owen 2007).
"""

import math
from zlib import crc32

import numpy as np
from jaxtyping import Float64

from ringrl.reporting.statistics.estimates import CONFIDENCE, PAIRS_FOR_VERDICT, RESAMPLES, Estimate


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
