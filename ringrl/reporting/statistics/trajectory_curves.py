"""Return against the number of trajectories in the context, from runs of one agent trained with different numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ringrl.reporting.statistics.estimates import Estimate, estimate, show
from ringrl.reporting.statistics.resampling import difference, shown_above
from ringrl.reporting.statistics.series import Series, TaskSection, differing_keys, display_name

FEWEST = 3  # numbers of trajectories that make a curve
MEASURES = {"last": "last trial", "max_of_n": "largest among n trials"}


@dataclass(frozen=True)
class CurvePoint:
    """Two numbers of trajectories compared."""

    fewer: int
    more: int
    difference: Estimate  # with `more` minus with `fewer`
    above: bool | None  # whether `more` is above (True) or below (False); None: not shown
    single: bool  # whether either is of one training seed, which allows no verdict on trainings

    @property
    def verdict(self) -> str:
        """What the interval carries."""
        if self.single:
            return "one training seed, so no verdict"
        return {True: "above it", False: "below it", None: "no difference shown"}[self.above]


@dataclass(frozen=True)
class TrajectoryCurve:
    """One agent's returns over the number of trajectories in its context."""

    label: str
    agent: str
    series: tuple[Series, ...]  # one a number, ascending
    trajectories: tuple[int, ...]
    trials: int  # n of "largest among n": the fewest that any of the series has
    points: dict[str, tuple[Estimate, ...]]  # by measure
    gain: dict[str, CurvePoint]  # by measure: with the most trajectories against with the fewest
    steps: dict[str, tuple[CurvePoint, ...]]  # by measure: each number of trajectories against the one before it
    differ: tuple[str, ...]  # other settings in which the runs differ


def trajectory_curves(section: TaskSection) -> tuple[TrajectoryCurve, ...]:
    """A curve for each agent file of which a section has at least `FEWEST` numbers of trajectories.

    Where several series of a file have the same number, labels that differ in more than digits make separate curves.
    """
    curves = []
    for agent in dict.fromkeys(series.agent for series in section.series):
        mine = [series for series in section.series if series.agent == agent and series.trajectories is not None]
        if _distinct(mine):
            curves.append(_curve(section.task, display_name(agent), mine))
            continue
        for words in dict.fromkeys(_singular(series.label) for series in mine):
            alike = [series for series in mine if _singular(series.label) == words]
            if _distinct(alike):
                curves.append(_curve(section.task, _without_digits(alike[-1].label), alike))
    return tuple(curve for curve in curves if len(curve.trajectories) >= FEWEST)


def finding(curve: TrajectoryCurve, measure: str) -> str:
    """One sentence: whether more trajectories earn more beyond the interval, and between which neighbours."""
    gain, low, high = curve.gain[measure], curve.points[measure][0], curve.points[measure][-1]
    return (
        f"{curve.label}, {MEASURES[measure]}: {show(high)} with {gain.more} trajectories against {show(low)} with "
        f"{gain.fewer}: {gain.verdict} ({show(gain.difference, signed=True)}); {_order(curve.steps[measure])}."
    )


def _order(steps: Sequence[CurvePoint]) -> str:
    """Neighbours compared, those of one verdict together."""
    if all(step.single for step in steps):
        return "no verdict between neighbours either"
    if all(step.above for step in steps):
        return "each number is above the one before it"
    kinds = {
        "it rises": [step for step in steps if step.above],
        "it falls": [step for step in steps if step.above is False],
        "no difference shown": [step for step in steps if step.above is None and not step.single],
        "one training seed": [step for step in steps if step.single],
    }
    return "; ".join(
        f"{words} {', '.join(f'between {step.fewer} and {step.more}' for step in mine)}"
        for words, mine in kinds.items()
        if mine
    )


def _distinct(series: Sequence[Series]) -> bool:
    return 0 < len(series) == len({each.trajectories for each in series})


def _without_digits(label: str) -> str:
    return " ".join(re.sub(r"[0-9]+", " ", label).split())


def _singular(label: str) -> str:
    """The same for `AD, 1 trial` and `AD, 2 trials`."""
    return re.sub(r"s\b", "", _without_digits(label))


def _curve(task: str, label: str, series: Sequence[Series]) -> TrajectoryCurve:
    ordered = sorted(series, key=lambda each: each.trajectories or 0)
    trials = min(each.returns.shape[2] for each in ordered)
    values = {
        "last": [each.returns[:, :, -1] for each in ordered],
        "max_of_n": [each.returns[:, :, :trials].max(axis=2) for each in ordered],
    }
    points = {measure: tuple(estimate(each) for each in arrays) for measure, arrays in values.items()}
    runs = [run for each in ordered for run in each.distinct_runs]
    return TrajectoryCurve(
        label=label,
        agent=ordered[0].agent,
        series=tuple(ordered),
        trajectories=tuple(each.trajectories or 0 for each in ordered),
        trials=trials,
        points=points,
        gain={measure: _step(task, ordered, arrays, 0, -1) for measure, arrays in values.items()},
        steps={
            measure: tuple(_step(task, ordered, arrays, index, index + 1) for index in range(len(ordered) - 1))
            for measure, arrays in values.items()
        },
        differ=tuple(differing_keys(runs, ("agent.trajectories",))),
    )


def _step(
    task: str, series: Sequence[Series], values: Sequence[Float64[np.ndarray, "_ _"]], fewer: int, more: int
) -> CurvePoint:
    """Two of the series compared, by their indices; `values` is one measure [seeds, envs] of each."""
    number = difference(values[more], values[fewer], task, (series[more].label, series[fewer].label))
    single = min(len(values[fewer]), len(values[more])) == 1
    above = None if single else shown_above(number, min(values[fewer].size, values[more].size))
    return CurvePoint(series[fewer].trajectories or 0, series[more].trajectories or 0, number, above, single)
