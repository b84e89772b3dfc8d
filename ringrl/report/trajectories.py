"""Return against the number of trajectories in the context, from runs of one agent trained with different numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringrl.report.resampling import difference, shown_above
from ringrl.report.series import Section, Series, differing_keys, display_name
from ringrl.report.statistics import Estimate, estimate, show

FEWEST = 3  # numbers of trajectories that make a curve
MEASURES = {"last": "last trial", "max_of_n": "largest among n trials"}


@dataclass(frozen=True)
class TrajectoryCurve:
    """One agent's returns over the number of trajectories in its context."""

    label: str
    agent: str
    series: tuple[Series, ...]  # one a number, ascending
    trajectories: tuple[int, ...]
    trials: int  # n of "largest among n": the fewest that any of the series has
    points: dict[str, tuple[Estimate, ...]]  # by measure
    gain: dict[str, Estimate]  # by measure: with the most trajectories minus with the fewest
    rises: dict[str, bool | None]  # by measure: whether the gain is shown
    monotone: dict[str, bool]  # by measure: whether no estimate is below the one before it
    differ: tuple[str, ...]  # other settings in which the runs differ


def trajectory_curves(section: Section) -> tuple[TrajectoryCurve, ...]:
    """A curve for each agent file of which a section has at least `FEWEST` numbers of trajectories.

    Where several series of a file have the same number, labels that differ in more than digits make separate curves.
    """
    curves = []
    for agent in dict.fromkeys(series.agent for series in section.series):
        mine = [series for series in section.series if series.agent == agent and series.trajectories is not None]
        if _distinct(mine):
            curves.append(_curve(section.task, display_name(agent), mine))
            continue
        for words in dict.fromkeys(_without_digits(series.label) for series in mine):
            alike = [series for series in mine if _without_digits(series.label) == words]
            if _distinct(alike):
                curves.append(_curve(section.task, words, alike))
    return tuple(curve for curve in curves if len(curve.trajectories) >= FEWEST)


def finding(curve: TrajectoryCurve, measure: str) -> str:
    """One sentence: whether more trajectories earn more beyond the interval, and whether at every step."""
    first, last = curve.trajectories[0], curve.trajectories[-1]
    low, high = curve.points[measure][0], curve.points[measure][-1]
    claim = {
        True: f"above it, by {show(curve.gain[measure], signed=True)}",
        False: f"below it, by {show(curve.gain[measure], signed=True)}",
        None: f"no difference shown ({show(curve.gain[measure], signed=True)})",
    }[curve.rises[measure]]
    values = [point.value for point in curve.points[measure]]
    falls = [
        f"{a} to {b}"
        for a, b, x, y in zip(curve.trajectories, curve.trajectories[1:], values, values[1:], strict=False)
        if y < x
    ]
    order = "the estimates rise monotonically" if not falls else f"not monotone: falls from {' and from '.join(falls)}"
    return (
        f"{curve.label}, {MEASURES[measure]}: {show(high)} with {last} trajectories against {show(low)} with {first}: "
        f"{claim}; {order}."
    )


def _distinct(series: Sequence[Series]) -> bool:
    return 0 < len(series) == len({each.trajectories for each in series})


def _without_digits(label: str) -> str:
    return " ".join(re.sub(r"[0-9]+", " ", label).split())


def _curve(task: str, label: str, series: Sequence[Series]) -> TrajectoryCurve:
    ordered = sorted(series, key=lambda each: each.trajectories or 0)
    trials = min(each.returns.shape[2] for each in ordered)
    values = {
        "last": [each.returns[:, :, -1] for each in ordered],
        "max_of_n": [each.returns[:, :, :trials].max(axis=2) for each in ordered],
    }
    points = {measure: tuple(estimate(each) for each in arrays) for measure, arrays in values.items()}
    ends = (ordered[-1].label, ordered[0].label)
    gain = {measure: difference(arrays[-1], arrays[0], task, ends) for measure, arrays in values.items()}
    units = min(each.returns[:, :, 0].size for each in (ordered[0], ordered[-1]))
    runs = [run for each in ordered for run in each.distinct_runs]
    return TrajectoryCurve(
        label=label,
        agent=ordered[0].agent,
        series=tuple(ordered),
        trajectories=tuple(each.trajectories or 0 for each in ordered),
        trials=trials,
        points=points,
        gain=gain,
        rises={measure: shown_above(number, units) for measure, number in gain.items()},
        monotone={m: bool((np.diff([point.value for point in line]) >= 0).all()) for m, line in points.items()},
        differ=tuple(differing_keys(runs, ("agent.trajectories",))),
    )
