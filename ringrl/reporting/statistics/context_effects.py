"""What the context is worth: returns over its number of trajectories, and under context ablations."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ringrl.agent_record import AgentRecord
from ringrl.reporting.statistics.bootstrap import PAIRS_FOR_VERDICT, Estimate, difference, estimate, show, shown_above
from ringrl.reporting.statistics.pooling import AblationReturns
from ringrl.reporting.statistics.series import Series, TaskSection, differing_keys

FEWEST = 3  # numbers of trajectories that make a curve
MEASURES = {"last": "last trial", "max_of_n": "largest among n trials"}

_WORDS = {
    "truncated": "Without earlier trials",
    "shuffled": "With the earlier trials in another order",
    "foreign": "With another environment’s earlier trials",
    "blind": "With no reward anywhere, the present trial included (the return-to-go stays the target)",
    "unpaid": "With those earlier trials alone that were not paid",
    "paid": "With those earlier trials alone that were paid",
}


@dataclass(frozen=True)
class AblationEffect:
    """One context ablation of one agent, pooled over its seeds."""

    name: str
    seeds: int
    envs: int
    intact: tuple[Estimate, ...]  # by trial, of the seeds that have the ablation
    ablated: tuple[Estimate, ...]
    cost: Estimate  # of the last trial: intact minus ablated, paired within environments
    demonstrations: int = 0  # with which both contexts began

    @property
    def matters(self) -> bool | None:
        """True: the ablation lowers the return; False: it raises it; None: nothing shown, or too few units to tell."""
        return shown_above(self.cost, self.seeds * self.envs)

    @property
    def sentence(self) -> str:
        """What the interval carries, and no more."""
        words = _WORDS.get(self.name, f"Under the ablation “{self.name}”")
        if self.demonstrations:
            words = f"After {self.demonstrations} demonstrations, {words[0].lower()}{words[1:]},"
        last = "one" if len(self.intact) == 1 else "last"
        if self.matters is None:
            few = self.seeds * self.envs < PAIRS_FOR_VERDICT
            why = f"too few environments ({self.seeds * self.envs}) to tell" if few else "no difference shown"
            difference = show(self.cost, signed=True)
            return f"{words.removesuffix(',')}: {why} in the {last} trial (intact minus ablated {difference})."
        cost = self.cost if self.matters else Estimate(-self.cost.value, -self.cost.high, -self.cost.low)
        number, _, interval = show(cost).partition(" ")
        return f"{words} the {last} trial earns {number} {'less' if self.matters else 'more'} {interval}."


def ablation_effects(series: Series) -> tuple[AblationEffect, ...]:
    """All context ablations of a series: the known ones first, by their severity, then by demonstrations."""
    rank = {name: index for index, name in enumerate(_WORDS)}
    ordered = sorted(series.ablations, key=lambda each: (rank.get(each.name, len(rank)), each.demonstrations))
    return tuple(_effect(each) for each in ordered)


def _effect(returns: AblationReturns) -> AblationEffect:
    seeds, envs, trials = returns.intact.shape
    return AblationEffect(
        name=returns.name,
        seeds=seeds,
        envs=envs,
        intact=tuple(estimate(returns.intact[:, :, trial]) for trial in range(trials)),
        ablated=tuple(estimate(returns.ablated[:, :, trial]) for trial in range(trials)),
        cost=estimate(returns.intact[:, :, -1] - returns.ablated[:, :, -1]),
        demonstrations=returns.demonstrations,
    )


@dataclass(frozen=True)
class CurvePair:
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
    agent: AgentRecord
    series: tuple[Series, ...]  # one a number, ascending
    trajectories: tuple[int, ...]
    trials: int  # n of "largest among n": the fewest that any of the series has
    points: dict[str, tuple[Estimate, ...]]  # by measure
    gain: dict[str, CurvePair]  # by measure: with the most trajectories against with the fewest
    neighbours: dict[str, tuple[CurvePair, ...]]  # by measure: each number of trajectories against the one before it
    differ: tuple[str, ...]  # other settings in which the runs differ


def trajectory_curves(section: TaskSection) -> tuple[TrajectoryCurve, ...]:
    """A curve for each agent of which a section has at least `FEWEST` numbers of trajectories.

    Where several series of an agent have the same number, labels that differ in more than digits make separate curves.
    """
    curves = []
    for name in dict.fromkeys(series.agent.display_name for series in section.series):
        alike = [series for series in section.series if series.agent.display_name == name]
        mine = [series for series in alike if series.trajectories is not None]
        if _distinct(mine):
            curves.append(_curve(section.task, name, mine))
            continue
        for words in dict.fromkeys(_singular(series.label) for series in mine):
            some = [series for series in mine if _singular(series.label) == words]
            if _distinct(some):
                curves.append(_curve(section.task, _without_digits(some[-1].label), some))
    return tuple(curve for curve in curves if len(curve.trajectories) >= FEWEST)


def finding(curve: TrajectoryCurve, measure: str) -> str:
    """One sentence: whether more trajectories earn more beyond the interval, and between which neighbours."""
    gain, low, high = curve.gain[measure], curve.points[measure][0], curve.points[measure][-1]
    return (
        f"{curve.label}, {MEASURES[measure]}: {show(high)} with {gain.more} trajectories against {show(low)} with "
        f"{gain.fewer}: {gain.verdict} ({show(gain.difference, signed=True)}); {in_order(curve.neighbours[measure])}."
    )


def in_order(neighbours: Sequence[CurvePair]) -> str:
    """Words on whether a curve rises: neighbours compared, those of one verdict together."""
    if all(pair.single for pair in neighbours):
        return "no verdict between neighbours either"
    if all(pair.above for pair in neighbours):
        return "each number is above the one before it"
    kinds = {
        "it rises": [pair for pair in neighbours if pair.above],
        "it falls": [pair for pair in neighbours if pair.above is False],
        "no difference shown": [pair for pair in neighbours if pair.above is None and not pair.single],
        "one training seed": [pair for pair in neighbours if pair.single],
    }
    return "; ".join(
        f"{words} {', '.join(f'between {pair.fewer} and {pair.more}' for pair in mine)}"
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
        gain={measure: _compare_numbers(task, ordered, arrays, 0, -1) for measure, arrays in values.items()},
        neighbours={
            measure: tuple(
                _compare_numbers(task, ordered, arrays, index, index + 1) for index in range(len(ordered) - 1)
            )
            for measure, arrays in values.items()
        },
        differ=tuple(differing_keys(runs, ("agent.trajectories",))),
    )


def _compare_numbers(
    task: str, series: Sequence[Series], values: Sequence[Float64[np.ndarray, "_ _"]], fewer: int, more: int
) -> CurvePair:
    """Two of the series compared, by their indices; `values` is one measure [seeds, envs] of each."""
    number = difference(values[more], values[fewer], task, (series[more].label, series[fewer].label))
    single = min(len(values[fewer]), len(values[more])) == 1
    above = None if single else shown_above(number, min(values[fewer].size, values[more].size))
    return CurvePair(series[fewer].trajectories or 0, series[more].trajectories or 0, number, above, single)
