"""Everything that a report says of one task: each agent's statistics, reference levels, scores and verdicts."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ringrl.quality.return_history import monotonicity
from ringrl.reporting.statistics.bootstrap import PAIRS_FOR_VERDICT, Estimate, estimate, interquartile_mean, show
from ringrl.reporting.statistics.context_effects import (
    AblationEffect,
    TrajectoryCurve,
    ablation_effects,
    trajectory_curves,
)
from ringrl.reporting.statistics.demonstration_effects import DemonstrationCurve, demonstration_curve
from ringrl.reporting.statistics.evaluated_run import MANY_HISTORIES, DataSet
from ringrl.reporting.statistics.exploration_effects import ExplorationCurve, exploration_curve
from ringrl.reporting.statistics.pooling import Sweep
from ringrl.reporting.statistics.series import Series, TaskSection


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
        an expert it is `scale`: the data's best tenth are single episodes, which no best of n compares with."""
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


@dataclass(frozen=True)
class SweepPoint:
    """What an agent achieved with the target return `target`."""

    target: float
    first: Estimate
    last: Estimate
    mean: Estimate  # over all trials
    max_of_n: Estimate


@dataclass(frozen=True)
class Analysis:
    """A section with its numbers; dictionaries are by series label."""

    section: TaskSection
    statistics: dict[str, AgentStatistics]
    levels: References
    curves: tuple[TrajectoryCurve, ...]
    ablations: dict[str, tuple[AblationEffect, ...]]  # of the series that have any
    sweeps: dict[str, tuple[SweepPoint, ...]]  # of the series evaluated for several targets, ascending
    demonstrations: tuple[DemonstrationCurve, ...]  # of the series evaluated after several numbers of them
    explorations: tuple[ExplorationCurve, ...]  # of the series evaluated after exploring for several numbers of trials

    @property
    def own_ablations(self) -> dict[str, tuple[AblationEffect, ...]]:
        """Of the series whose ablated contexts never began with demonstrations."""
        return {label: all_ for label, all_ in self.ablations.items() if not any(each.demonstrations for each in all_)}

    @property
    def demonstrated_ablations(self) -> dict[str, tuple[AblationEffect, ...]]:
        """Of the other series, after every number of demonstrations."""
        return {label: effects for label, effects in self.ablations.items() if label not in self.own_ablations}

    @property
    def trials(self) -> int:
        """The fewest trials that any agent has."""
        return min(series.returns.shape[2] for series in self.section.series)


def analyse(section: TaskSection) -> Analysis:
    """All statistics of a section."""
    return Analysis(
        section,
        {series.label: agent_statistics(series.returns) for series in section.series},
        references(section),
        trajectory_curves(section),
        {series.label: ablation_effects(series) for series in section.series if series.ablations},
        {series.label: _sweep_points(series.sweep) for series in section.series if series.sweep},
        tuple(curve for curve in map(demonstration_curve, section.series) if curve),
        tuple(curve for curve in map(exploration_curve, section.series) if curve),
    )


def _sweep_points(sweep: Sweep) -> tuple[SweepPoint, ...]:
    return tuple(
        SweepPoint(
            target,
            first=estimate(returns[:, :, 0]),
            last=estimate(returns[:, :, -1]),
            mean=estimate(returns.mean(axis=2)),
            max_of_n=estimate(returns.max(axis=2)),
        )
        for target, returns in zip(sweep.targets, sweep.returns, strict=True)
    )


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
    # Where each episode is paid by another member of a family, its return says nothing of the members evaluated.
    measured = [data for data in section.datasets if data.relabel != "members"]
    if not measured:
        return References(random, None, None, expert, *most)
    data = max(measured, key=lambda data: top_decile(data.returns))
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
    in_context = series.agent.across_trials
    gain = show(statistics.gain, signed=True)
    claim = {
        True: f"improves in context, by {gain}" if in_context else f"last trial higher than first, by {gain}",
        False: f"gets worse in context, by {gain}" if in_context else f"last trial lower than first, by {gain}",
        None: f"no difference shown ({gain})",
    }[statistics.improves]
    if statistics.pairs < PAIRS_FOR_VERDICT:
        claim = f"too few environments ({statistics.pairs}) to tell; a verdict needs {PAIRS_FOR_VERDICT}"
    return f"{series.label}: last trial {show(statistics.last)} against first {show(statistics.first)}: {claim}."
