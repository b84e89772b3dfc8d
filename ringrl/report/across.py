"""Agents over several tasks, in the shape of Ring Attention's Table 5 and by rliable's aggregates.

Scores are normalised task by task; `average` is their mean over tasks, IQM the interquartile mean over all runs of all
tasks, a run's score being its mean over environments (Agarwal et al. 2021, sections 4.2 and 4.3).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from ringrl.report.analysis import Analysis
from ringrl.report.resampling import from_resamples, resample_runs, shown_above
from ringrl.report.series import Series, rank
from ringrl.report.statistics import Estimate, estimate, interquartile_mean

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
    difference: Estimate  # average of `one` minus average of `other`
    above: bool | None  # whether `one` is above (True) or below (False); None: not shown

    @property
    def verdict(self) -> str:
        """What the interval carries."""
        if self.above is None:
            return "no difference shown"
        return f"{self.one if self.above else self.other} is higher"


@dataclass(frozen=True)
class Comparison:
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
    comparisons: dict[str, Comparison]  # by measure
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
    files = {series.label: series.agent for series in everything}
    labels = tuple(sorted(files, key=lambda label: rank(label, files[label])))
    trials = min(series.returns.shape[2] for series in everything)
    scaled = [analysis for analysis in analyses if analysis.levels.scale is not None]
    complete = [label for label in labels if scaled and all(label in analysis.statistics for analysis in scaled)]
    return Across(
        labels=labels,
        tasks=tuple(analysis.section.task for analysis in analyses),
        trials=trials,
        comparisons={measure: _compare(analyses, measure, trials, complete) for measure in MEASURES},
        notes=tuple(_notes(analyses, labels, complete, trials)),
    )


def _notes(analyses: Sequence[Analysis], labels: Sequence[str], complete: Sequence[str], trials: int) -> list[str]:
    notes = []
    without = [analysis.section.task for analysis in analyses if analysis.levels.scale is None]
    if without:
        notes.append(f"Without a scale, and so left out of average and IQM: {', '.join(without)}.")
    lacking = [label for label in labels if label not in complete]
    if lacking and len(without) < len(analyses):
        notes.append(f"Not evaluated on every task, and so left out of average and IQM: {'; '.join(lacking)}.")
    counts = {series.returns.shape[2] for analysis in analyses for series in analysis.section.series}
    if len(counts) > 1:
        notes.append(
            f"Agents were evaluated over {min(counts)} to {max(counts)} trials. The largest return is that of the "
            f"first {trials} for all; last and mean are of each agent’s own trials."
        )
    return notes


def _measure(series: Series, measure: str, trials: int) -> Float64[np.ndarray, "seeds envs"]:
    take: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "max_of_n": lambda returns: returns[:, :, :trials].max(axis=2),
        "first": lambda returns: returns[:, :, 0],
        "last": lambda returns: returns[:, :, -1],
        "mean": lambda returns: returns.mean(axis=2),
    }
    return take[measure](series.returns)


def _compare(analyses: Sequence[Analysis], measure: str, trials: int, complete: Sequence[str]) -> Comparison:
    returns: dict[str, dict[str, Estimate]] = {}
    scores: dict[str, dict[str, Estimate]] = {}
    entries: dict[str, list[_Entry]] = {label: [] for label in complete}
    for analysis in analyses:
        section, scale = analysis.section, analysis.levels.scale
        values = {series.label: _measure(series, measure, trials) for series in section.series}
        returns[section.task] = {label: estimate(each) for label, each in values.items()}
        if scale is None:
            continue
        zero, hundred = scale
        scores[section.task] = {label: each.scaled(zero, hundred) for label, each in returns[section.task].items()}
        for label, each in values.items():
            if label in entries:
                normalised = 100 * (each - zero) / (hundred - zero)
                runs = resample_runs(normalised, section.task, label)
                entries[label].append(_Entry(normalised.mean(axis=1), runs, each.size))
    draws = {label: np.mean([each.resamples.mean(axis=1) for each in mine], axis=0) for label, mine in entries.items()}
    average = {label: _average(mine, draws[label]) for label, mine in entries.items()}
    pairs = tuple(_pair(one, other, average, draws, entries) for one, other in combinations(entries, 2))
    return Comparison(returns, scores, average, {label: _iqm(mine) for label, mine in entries.items()}, pairs)


def _average(entries: Sequence[_Entry], draws: Float64[np.ndarray, " resamples"]) -> Estimate:
    value = float(np.mean([entry.values.mean() for entry in entries]))
    return from_resamples(value, draws) if _resampled(entries) else Estimate(value)


def _iqm(entries: Sequence[_Entry]) -> Estimate:
    value = float(interquartile_mean(np.concatenate([entry.values for entry in entries])))
    if not _resampled(entries):
        return Estimate(value)
    runs = np.concatenate([entry.resamples for entry in entries], axis=1)
    return from_resamples(value, np.asarray(interquartile_mean(runs, axis=1), np.float64))


def _resampled(entries: Sequence[_Entry]) -> bool:
    """A task with a single unit would count as exactly known."""
    return all(entry.units > 1 for entry in entries)


def _pair(
    one: str,
    other: str,
    average: dict[str, Estimate],
    draws: dict[str, Float64[np.ndarray, " resamples"]],
    entries: dict[str, list[_Entry]],
) -> Pair:
    value = average[one].value - average[other].value
    known = average[one].has_interval and average[other].has_interval
    number = from_resamples(value, draws[one] - draws[other]) if known else Estimate(value, math.nan, math.nan)
    units = min(sum(entry.units for entry in entries[label]) for label in (one, other))
    return Pair(one, other, number, shown_above(number, units))
