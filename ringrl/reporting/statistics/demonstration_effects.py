"""What demonstrations are worth: returns over the number of trajectories of a store with which the context began."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ringrl.reporting.statistics.bootstrap import PAIRS_FOR_VERDICT, Estimate, estimate, show, shown_above
from ringrl.reporting.statistics.context_effects import CurvePair, in_order
from ringrl.reporting.statistics.pooling import DemonstrationReturns
from ringrl.reporting.statistics.series import Series

TRIALS = {"first": "first trial", "last": "last trial"}


@dataclass(frozen=True)
class DemonstrationCurve:
    """One agent's returns over the number of demonstrations, pooled over its seeds."""

    label: str
    numbers: tuple[int, ...]  # ascending
    seeds: int
    envs: int
    points: dict[str, tuple[Estimate, ...]]  # by trial of `TRIALS`
    gain: dict[str, Estimate]  # with the most minus with the fewest, paired within environments
    steps: dict[str, tuple[CurvePair, ...]]  # each number against the one before it, paired likewise
    trials: int  # after each number

    @property
    def shown(self) -> dict[str, str]:
        """The trials of `TRIALS` that are not the same one, and their words."""
        return TRIALS if self.trials > 1 else {"first": "the one trial"}

    def above(self, trial: str) -> bool | None:
        """Whether the most are above the fewest (True) or below (False); None: not shown, or too few units to tell."""
        return shown_above(self.gain[trial], self.seeds * self.envs)

    def finding(self, trial: str) -> str:
        """One sentence on a trial of `TRIALS`: what the most are worth against the fewest, as the interval allows."""
        fewest, most = ("none" if number == 0 else str(number) for number in (self.numbers[0], self.numbers[-1]))
        units = self.seeds * self.envs
        few = f"too few environments ({units}) to tell" if units < PAIRS_FOR_VERDICT else "no difference shown"
        verdict = {True: "above it", False: "below it", None: few}[self.above(trial)]
        low, high = self.points[trial][0], self.points[trial][-1]
        words = self.shown.get(trial, TRIALS[trial])
        return (
            f"{self.label}, {words}: {show(high)} after {most} demonstrations against {show(low)} after "
            f"{fewest}: {verdict} ({show(self.gain[trial], signed=True)}){self._steps(trial)}."
        )

    def _steps(self, trial: str) -> str:
        steps = self.steps[trial]
        enough = len(steps) > 1 and self.seeds * self.envs >= PAIRS_FOR_VERDICT
        return f"; {in_order(steps)}" if enough else ""


def demonstration_curve(series: Series) -> DemonstrationCurve | None:
    """The curve of a series; None where there are fewer than two numbers of demonstrations."""
    pooled = series.demonstrations
    return _curve(series.label, pooled) if pooled is not None and len(pooled.numbers) > 1 else None


def _curve(label: str, pooled: DemonstrationReturns) -> DemonstrationCurve:
    _, seeds, envs, trials = pooled.returns.shape
    values = {"first": pooled.returns[..., 0], "last": pooled.returns[..., -1]}
    return DemonstrationCurve(
        label=label,
        numbers=pooled.numbers,
        seeds=seeds,
        envs=envs,
        points={trial: tuple(estimate(each) for each in arrays) for trial, arrays in values.items()},
        gain={trial: estimate(arrays[-1] - arrays[0]) for trial, arrays in values.items()},
        steps={trial: _neighbours(pooled.numbers, arrays) for trial, arrays in values.items()},
        trials=trials,
    )


def _neighbours(numbers: tuple[int, ...], returns: Float64[np.ndarray, "numbers seeds envs"]) -> tuple[CurvePair, ...]:
    """Each number against the one before it: the same seeds in the same environments, so differences are paired."""
    found = [estimate(more - fewer) for fewer, more in zip(returns, returns[1:], strict=False)]
    return tuple(
        CurvePair(fewer, more, number, shown_above(number, returns[0].size), single=False)
        for fewer, more, number in zip(numbers, numbers[1:], found, strict=False)
    )
