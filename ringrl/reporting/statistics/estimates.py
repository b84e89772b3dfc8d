"""Statistics of returns, each with its 95 % interval. Deterministic: every bootstrap starts from the same seed.

One training seed: BCa bootstrap over environments (`scipy.stats.bootstrap`; Efron 1987). Several seeds: the pigeonhole
bootstrap (Owen 2007), which resamples seeds and environments at once. Environments of one trained network are no
independent evidence about training, and seeds evaluated in the same environments share their luck; treating all returns
as independent would overlook both. IQM: Agarwal et al. 2021.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float64

from ringrl.quality.return_history import monotonicity
from ringrl.reporting.statistics.evaluated_run import MANY_HISTORIES, DataSet
from ringrl.reporting.statistics.series import Series, TaskSection

CONFIDENCE = 0.95
RESAMPLES = 4000
# With 5 paired differences even 5 of one sign happen by chance in 1 of 16 cases; with 6 it is 1 of 32, below 5 %.
PAIRS_FOR_VERDICT = 6

# Agents that look across trials, by their files. Of others, and of files not known, a gain is not put down to context.
ACROSS_TRIALS = ("agentic_transformer", "algorithm_distillation")

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


@dataclass(frozen=True)
class AgentStatistics:
    """What the table shows of one agent; the unit is an environment of a seed, and gains are paired within units."""

    by_trial: tuple[Estimate, ...]
    first: Estimate
    last: Estimate
    gain: Estimate  # last - first; NaN with a single trial
    mean: Estimate  # over all trials
    max_of_n: Estimate  # mean over units of the best of the n trials
    iqm: Estimate  # interquartile mean of the last trial
    pairs: int  # units

    @property
    def improves(self) -> bool | None:
        """True: in-context gain shown; False: loss shown; None: nothing shown, or too few units to tell."""
        if self.pairs < PAIRS_FOR_VERDICT or not self.gain.excludes_zero:
            return None
        return self.gain.value > 0


@dataclass(frozen=True)
class References:
    """What normalised scores are measured against, in returns; None where the runs do not hold it."""

    random: Estimate | None
    top_decile: float | None  # mean return of the data set's best tenth of episodes
    best: float | None  # of the data set's best episode
    expert: Estimate | None = None  # an oracle that sees what is hidden, in the agents' environments
    random_largest: tuple[Estimate, ...] = ()  # its largest return among the first n trials, at index n - 1
    expert_largest: tuple[Estimate, ...] = ()

    @property
    def hundred(self) -> float | None:
        """The return of score 100, should there be a scale: the expert's, or without one the data's best tenth's."""
        return self.top_decile if self.expert is None else self.expert.value

    @property
    def scale(self) -> tuple[float, float] | None:
        """(return of score 0, return of score 100), or None if there is no such scale."""
        if self.random is None or self.hundred is None or self.hundred <= self.random.value:
            return None
        return self.random.value, self.hundred

    @property
    def trials(self) -> int:
        """Trials that the reference policies have."""
        return min((len(each) for each in (self.random_largest, self.expert_largest) if each), default=0)

    def largest(self, n: int) -> tuple[Estimate | None, Estimate | None]:
        """(random's, the expert's) largest return among `n` trials, or among as many as they have."""
        last = min(n, self.trials) - 1
        random, expert = (each[last] if each else None for each in (self.random_largest, self.expert_largest))
        return random, expert

    def largest_scale(self, n: int) -> tuple[float, float] | None:
        """The scale of the largest return among `n` trials: the reference policies' own largest among as many. Without
        an expert it is `scale`: the data's best tenth are single episodes, which no best of n stands against."""
        random, expert = self.largest(n)
        if self.scale is None or self.expert is None:
            return self.scale
        if random is None or expert is None or expert.value <= random.value:
            return None
        return random.value, expert.value

    @property
    def largest_words(self) -> str:
        """What the scale of the largest return among n is."""
        if self.expert is None:
            return "In summary.json the best of n is on the same scale."
        return (
            "In summary.json the best of n has a scale of its own: 0 is random’s best of as many trials, 100 the "
            "expert’s."
        )

    @property
    def hundred_words(self) -> str:
        """What 100 is."""
        return "mean of the data’s best tenth of episodes" if self.expert is None else "mean of the expert"


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


def agent_statistics(returns: Float64[np.ndarray, "seeds envs trials"]) -> AgentStatistics:
    """All of an agent's statistics from its returns."""
    by_trial = tuple(estimate(returns[:, :, trial]) for trial in range(returns.shape[2]))
    return AgentStatistics(
        by_trial=by_trial,
        first=by_trial[0],
        last=by_trial[-1],
        gain=estimate(returns[:, :, -1] - returns[:, :, 0]) if len(by_trial) > 1 else Estimate(math.nan),
        mean=estimate(returns.mean(axis=2)),
        max_of_n=estimate(returns.max(axis=2)),
        iqm=estimate(returns[:, :, -1], interquartile_mean),
        pairs=returns.shape[0] * returns.shape[1],
    )


def references(section: TaskSection) -> References:
    """The policies' and the data's returns. Of several data sets, the one with the highest best tenth counts."""
    policies = (section.random, section.expert)
    random, expert = (estimate(returns.mean(axis=1)[None, :]) if returns.size else None for returns in policies)
    most = tuple(
        tuple(estimate(returns[None, :, :n].max(axis=2)) for n in range(1, returns.shape[1] + 1))
        for returns in policies
    )
    if not section.datasets:
        return References(random, None, None, expert, *most)
    data = max(section.datasets, key=lambda data: top_decile(data.returns))
    return References(random, top_decile(data.returns), float(data.returns.max()), expert, *most)


def normalised(series: Series, statistics: AgentStatistics, levels: References) -> dict[str, Estimate | None] | None:
    """Scores on the scale of `References.scale`, that of the largest return on `largest_scale`; None without one.

    The largest is among as many trials as the reference policies have too.
    """
    if levels.scale is None:
        return None
    names = ("first", "last", "mean", "iqm")
    scores: dict[str, Estimate | None] = {name: getattr(statistics, name).scaled(*levels.scale) for name in names}
    n = min(series.returns.shape[2], levels.trials)
    scale = levels.largest_scale(n)
    scores["max_of_n"] = estimate(series.returns[:, :, :n].max(axis=2)).scaled(*scale) if scale else None
    return scores


def top_decile(returns: Float64[np.ndarray, " episodes"]) -> float:
    """Mean of the highest tenth of `returns`, at least one."""
    count = max(1, len(returns) // 10)
    return float(np.sort(returns)[-count:].mean())


def trend(data: DataSet, source: int) -> float:
    """Spearman's rank correlation of return with file order within one source: 1 is a history that only rises.

    NaN with fewer than three episodes or constant returns.
    """
    returns = data.returns[data.source == source]
    if len(returns) < 3 or np.ptp(returns) == 0:
        return math.nan
    return monotonicity(returns)


def trends(data: DataSet) -> list[tuple[str, str, int, float]]:
    """(name, collector, episodes, `trend`) of every source; of more than `MANY_HISTORIES`, each collector's median."""
    values = [(s.name, s.collector, s.episodes, trend(data, index)) for index, s in enumerate(data.sources)]
    if len(values) <= MANY_HISTORIES:
        return values
    found = []
    for collector in dict.fromkeys(each for _, each, _, _ in values):
        mine = [(episodes, value) for _, each, episodes, value in values if each == collector]
        known = [value for _, value in mine if math.isfinite(value)]
        middle = float(np.median(known)) if known else math.nan
        found.append((f"{len(mine):,} histories", collector, sum(episodes for episodes, _ in mine), middle))
    return found


def verdict(series: Series, statistics: AgentStatistics) -> str:
    """One line that claims no more than the interval of the paired difference carries."""
    trials = series.returns.shape[2]
    if trials == 1:
        return f"{series.label}: one trial, {show(statistics.first)}; nothing to compare it with."
    learns = series.agent in ACROSS_TRIALS
    gain = show(statistics.gain, signed=True)
    claim = {
        True: f"improves in context, by {gain}" if learns else f"last trial higher than first, by {gain}",
        False: f"gets worse in context, by {gain}" if learns else f"last trial lower than first, by {gain}",
        None: f"no difference shown ({gain})",
    }[statistics.improves]
    if statistics.pairs < PAIRS_FOR_VERDICT:
        claim = f"too few environments ({statistics.pairs}) to tell; a verdict needs {PAIRS_FOR_VERDICT}"
    return f"{series.label}: last trial {show(statistics.last)} against first {show(statistics.first)}: {claim}."


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
