"""Agents over several tasks, in the shape of Ring Attention's Table 5 and by rliable's aggregates.

Scores are normalised task by task; `average` is their mean over tasks, IQM the interquartile mean over all runs of all
tasks, a run's score being its mean over environments (Agarwal et al. 2021, sections 4.2 and 4.3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from ringrl.reporting.statistics.bootstrap import (
    Estimate,
    estimate,
    from_resamples,
    interquartile_mean,
    resample_runs,
    show_number,
    shown_above,
)
from ringrl.reporting.statistics.series import Series, rank
from ringrl.reporting.statistics.task_statistics import Analysis

MEASURES = {
    "max_of_n": "Largest return among n trials",
    "first": "First trial",
    "last": "Last trial",
    "mean": "Mean of all trials",
}


@dataclass(frozen=True)
class Pair:
    """Two agents' averages compared."""

    one: str
    other: str
    tasks: tuple[str, ...]  # those with a scale that both have, over which the averages are taken
    difference: Estimate  # average of `one` minus average of `other`
    above: bool | None  # whether `one` is above (True) or below (False); None: not shown
    single: bool = False  # whether either has a task with one training seed, which allows no verdict on agents

    @property
    def verdict(self) -> str:
        """What the interval carries."""
        if self.single:
            return "one training seed"
        if self.above is None:
            return "no difference shown"
        return f"{self.one if self.above else self.other} is higher"


@dataclass(frozen=True)
class AgentComparison:
    """One measure over all tasks."""

    returns: dict[str, dict[str, Estimate]]  # by task, by label
    scores: dict[str, dict[str, Estimate]]  # the same normalised; tasks with a scale only
    average: dict[str, Estimate]  # by label; agents that have every task with a scale
    iqm: dict[str, Estimate]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Across:
    """All that is said over several tasks."""

    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    trials: int  # n of "largest among n": the fewest trials that any agent has on any task
    comparisons: dict[str, AgentComparison]  # by measure
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """What one agent scored on one task: the runs' returns of one measure, and their resamples, both normalised."""

    values: Float64[np.ndarray, " seeds"]
    resamples: Float64[np.ndarray, "_ seeds"]
    units: int


def compare_across(analyses: Sequence[Analysis]) -> Across:
    """The comparison of all agents over all tasks."""
    everything = [series for analysis in analyses for series in analysis.section.series]
    agents = {series.label: series.agent for series in everything}
    labels = tuple(sorted(agents, key=lambda label: rank(label, agents[label])))
    scaled = [analysis for analysis in analyses if analysis.levels.scale is not None]
    trials = min([series.returns.shape[2] for series in everything] + [analysis.levels.trials for analysis in scaled])
    scaled = [analysis for analysis in scaled if _scale(analysis, "max_of_n", trials) is not None]
    complete = [label for label in labels if scaled and all(label in analysis.statistics for analysis in scaled)]
    return Across(
        labels=labels,
        tasks=tuple(analysis.section.task for analysis in analyses),
        trials=trials,
        comparisons={measure: _compare(analyses, measure, trials, labels, complete) for measure in MEASURES},
        notes=tuple(_notes(analyses, labels, complete, trials)),
    )


def _notes(analyses: Sequence[Analysis], labels: Sequence[str], complete: Sequence[str], trials: int) -> list[str]:
    notes = []
    without = [analysis.section.task for analysis in analyses if _scale(analysis, "max_of_n", trials) is None]
    if without:
        notes.append(f"Without a scale, and so left out of average and IQM: {', '.join(without)}.")
    lacking = [label for label in labels if label not in complete]
    if lacking and len(without) < len(analyses):
        notes.append(f"Not evaluated on every task, and so left out of average and IQM: {'; '.join(lacking)}.")
    luck = [_luck(analysis, trials) for analysis in analyses if analysis.levels.scale and not analysis.levels.expert]
    if luck:
        notes.append(f"What luck is worth: the random policy’s own largest among n scores {', '.join(luck)}.")
    counts = {series.returns.shape[2] for analysis in analyses for series in analysis.section.series}
    if len(counts) > 1:
        notes.append(
            f"Agents were evaluated over {min(counts)} to {max(counts)} trials. The largest return is that of the "
            f"first {trials} for all; last and mean are of each agent’s own trials."
        )
    elif trials < min(counts):
        notes.append(f"The reference policies have {trials} trials, so the largest return is of the first {trials}.")
    return notes


def _luck(analysis: Analysis, trials: int) -> str:
    """What a policy that learns nothing scores by its largest return."""
    random, scale = analysis.levels.largest(trials)[0], analysis.levels.scale
    assert random is not None and scale is not None  # a scale without an expert begins at the random policy
    return f"{show_number(random.scaled(*scale).value)} on {analysis.section.task}"


def _scale(analysis: Analysis, measure: str, trials: int) -> tuple[float, float] | None:
    """The task's (0, 100) for a measure; None where it lacks that of any measure, so that all are of the same tasks."""
    largest = analysis.levels.largest_scale(trials)
    return largest if largest is None or measure == "max_of_n" else analysis.levels.scale


def _measure(series: Series, measure: str, trials: int) -> Float64[np.ndarray, "seeds envs"]:
    take: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "max_of_n": lambda returns: returns[:, :, :trials].max(axis=2),
        "first": lambda returns: returns[:, :, 0],
        "last": lambda returns: returns[:, :, -1],
        "mean": lambda returns: returns.mean(axis=2),
    }
    return take[measure](series.returns)


def _compare(
    analyses: Sequence[Analysis], measure: str, trials: int, labels: Sequence[str], complete: Sequence[str]
) -> AgentComparison:
    returns: dict[str, dict[str, Estimate]] = {}
    scores: dict[str, dict[str, Estimate]] = {}
    entries: dict[str, dict[str, _Entry]] = {}
    for analysis in analyses:
        section, scale = analysis.section, _scale(analysis, measure, trials)
        values = {series.label: _measure(series, measure, trials) for series in section.series}
        returns[section.task] = {label: estimate(each) for label, each in values.items()}
        if scale is None:
            continue
        zero, hundred = scale
        scores[section.task] = {label: each.scaled(zero, hundred) for label, each in returns[section.task].items()}
        for label, each in values.items():
            normalised = 100 * (each - zero) / (hundred - zero)
            runs = resample_runs(normalised, section.task, label)
            entries.setdefault(label, {})[section.task] = _Entry(normalised.mean(axis=1), runs, each.size)
    whole = {label: list(entries[label].values()) for label in complete}
    pairs = (
        _pair((one, other), entries) for one, other in combinations([each for each in labels if each in entries], 2)
    )
    return AgentComparison(
        returns,
        scores,
        {label: _average(mine) for label, mine in whole.items()},
        {label: _iqm(mine) for label, mine in whole.items()},
        tuple(pair for pair in pairs if pair is not None),
    )


def _average(entries: Sequence[_Entry]) -> Estimate:
    value = float(np.mean([entry.values.mean() for entry in entries]))
    return from_resamples(value, _average_resamples(entries)) if _resampled(entries) else Estimate(value)


def _average_resamples(entries: Sequence[_Entry]) -> Float64[np.ndarray, " resamples"]:
    return np.mean([entry.resamples.mean(axis=1) for entry in entries], axis=0)


def _iqm(entries: Sequence[_Entry]) -> Estimate:
    value = float(interquartile_mean(np.concatenate([entry.values for entry in entries])))
    if not _resampled(entries):
        return Estimate(value)
    runs = np.concatenate([entry.resamples for entry in entries], axis=1)
    return from_resamples(value, np.asarray(interquartile_mean(runs, axis=1), np.float64))


def _resampled(entries: Sequence[_Entry]) -> bool:
    """A task with a single unit would count as exactly known."""
    return all(entry.units > 1 for entry in entries)


def _pair(labels: tuple[str, str], entries: dict[str, dict[str, _Entry]]) -> Pair | None:
    """Two agents over the tasks that both have; None without such a task."""
    ours, theirs = (entries[label] for label in labels)
    tasks = tuple(task for task in ours if task in theirs)
    if not tasks:
        return None
    both = [[mine[task] for task in tasks] for mine in (ours, theirs)]
    one, other = (_average(mine) for mine in both)
    number = Estimate(one.value - other.value)
    if one.has_interval and other.has_interval:
        first, second = (_average_resamples(mine) for mine in both)
        number = from_resamples(number.value, first - second)
    single = any(len(entry.values) == 1 for mine in both for entry in mine)
    units = min(sum(entry.units for entry in mine) for mine in both)
    return Pair(*labels, tasks, number, None if single else shown_above(number, units), single)
