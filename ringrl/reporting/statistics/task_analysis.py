"""Everything that a report says of one task, computed once."""

from dataclasses import dataclass

from ringrl.reporting.statistics.ablation_effects import AblationEffect, ablation_effects
from ringrl.reporting.statistics.estimates import (
    AgentStatistics,
    Estimate,
    References,
    agent_statistics,
    estimate,
    references,
)
from ringrl.reporting.statistics.pooling import Sweep
from ringrl.reporting.statistics.series import TaskSection
from ringrl.reporting.statistics.trajectory_curves import TrajectoryCurve, trajectory_curves


@dataclass(frozen=True)
class SweepPoint:
    """What an agent achieved that was told to reach `target`."""

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
    probes: dict[str, tuple[AblationEffect, ...]]  # of the series that were probed
    sweeps: dict[str, tuple[SweepPoint, ...]]  # of the series that were told several targets, ascending

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
        {series.label: ablation_effects(series) for series in section.series if series.probes},
        {series.label: _sweep_points(series.sweep) for series in section.series if series.sweep},
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
