"""What exploring first is worth: returns over the trials, by how many of the first ones acted at random."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ringrl.reporting.statistics.bootstrap import PAIRS_FOR_VERDICT, Estimate, estimate, show, shown_above
from ringrl.reporting.statistics.pooling import ExplorationReturns
from ringrl.reporting.statistics.series import Series

_LAST = 4  # the last so many trials, or a quarter of all where they are fewer, are the level that is reached

MEASURES = {"next": "Next trial", "last": "Last trials", "mean": "Mean of all"}
"""The first trial after those that explored, the level at the end, and what exploring cost beside it."""


@dataclass(frozen=True)
class Explored:
    """The rollouts whose first `number` trials acted at random."""

    number: int
    by_trial: tuple[Estimate, ...]
    measures: dict[str, Estimate]  # by name in `MEASURES`
    gain: dict[str, Estimate]  # likewise, minus the rollouts that explored least, paired within environments


@dataclass(frozen=True)
class ExplorationCurve:
    """One agent's returns over its trials, after several numbers of trials that explored."""

    label: str
    seeds: int
    envs: int
    trials: int
    last: int  # trials of the measure `last`
    explored: tuple[Explored, ...]  # ascending

    @property
    def finding(self) -> str:
        """One sentence: the level after each number, and whether it is above that after the fewest."""
        fewest, others = self.explored[0], self.explored[1:]
        few = self.seeds * self.envs < PAIRS_FOR_VERDICT
        nothing = f"too few environments ({self.seeds * self.envs}) to tell" if few else "no difference shown"
        words = [
            f"{show(each.measures['last'])} after {each.number} "
            f"({ {True: 'above it', False: 'below it', None: nothing}[self.above(each)] }, "
            f"{show(each.gain['last'], signed=True)})"
            for each in others
        ]
        trials = "the last trial" if self.last == 1 else f"the mean of the last {self.last} of {self.trials} trials"
        began = "no trial" if fewest.number == 0 else f"{fewest.number} trials"
        return f"{self.label}, {trials}: {show(fewest.measures['last'])} where {began} explored; {', '.join(words)}."

    def above(self, each: Explored, measure: str = "last") -> bool | None:
        """Whether a number is above the fewest (True) or below (False); None: not shown, or too few units to tell."""
        return shown_above(each.gain[measure], self.seeds * self.envs)


def exploration_curve(series: Series) -> ExplorationCurve | None:
    """The curve of a series; None where there are fewer than two numbers."""
    pooled = series.explored
    return _curve(series.label, pooled) if pooled is not None and len(pooled.numbers) > 1 else None


def _curve(label: str, pooled: ExplorationReturns) -> ExplorationCurve:
    _, seeds, envs, trials = pooled.returns.shape
    last = max(min(_LAST, trials // 4), 1)
    measured = [
        _measures(returns, number, last) for number, returns in zip(pooled.numbers, pooled.returns, strict=True)
    ]
    explored = [
        Explored(
            number=number,
            by_trial=tuple(estimate(returns[:, :, trial]) for trial in range(trials)),
            measures={name: estimate(values) for name, values in mine.items()},
            gain={name: estimate(values - measured[0][name]) for name, values in mine.items()},
        )
        for number, returns, mine in zip(pooled.numbers, pooled.returns, measured, strict=True)
    ]
    return ExplorationCurve(label, seeds, envs, trials, last, tuple(explored))


def _measures(
    returns: Float64[np.ndarray, "seeds envs trials"], number: int, last: int
) -> dict[str, Float64[np.ndarray, "seeds envs"]]:
    """By name in `MEASURES`. Where all trials explored, there is no next one, and it is the last."""
    after = returns[:, :, min(number, returns.shape[2] - 1)]
    return {"next": after, "last": returns[:, :, -last:].mean(axis=2), "mean": returns.mean(axis=2)}
