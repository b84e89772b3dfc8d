"""What the earlier trials in the context are worth: evaluations with them tampered with, against the intact ones."""

from dataclasses import dataclass

from ringrl.reporting.statistics.estimates import PAIRS_FOR_VERDICT, Estimate, estimate, show
from ringrl.reporting.statistics.pooling import AblationReturns
from ringrl.reporting.statistics.resampling import shown_above
from ringrl.reporting.statistics.series import Series

_WORDS = {
    "truncated": "Without earlier trials",
    "shuffled": "With the earlier trials in another order",
    "foreign": "With another environment’s earlier trials",
    "blind": "With no reward anywhere, the present trial included (the return-to-go stays the target)",
}


@dataclass(frozen=True)
class AblationEffect:
    """One probe of one agent, pooled over its seeds."""

    name: str
    seeds: int
    envs: int
    intact: tuple[Estimate, ...]  # by trial, of the seeds that have the probe
    tampered: tuple[Estimate, ...]
    cost: Estimate  # of the last trial: intact minus tampered, paired within environments

    @property
    def matters(self) -> bool | None:
        """True: tampering costs return; False: it brings some; None: nothing shown, or too few units to tell."""
        return shown_above(self.cost, self.seeds * self.envs)

    @property
    def sentence(self) -> str:
        """What the interval carries, and no more."""
        words = _WORDS.get(self.name, f"Under the probe “{self.name}”")
        if self.matters is None:
            few = self.seeds * self.envs < PAIRS_FOR_VERDICT
            why = f"too few environments ({self.seeds * self.envs}) to tell" if few else "no difference shown"
            return f"{words}: {why} in the last trial (intact minus tampered {show(self.cost, signed=True)})."
        cost = self.cost if self.matters else Estimate(-self.cost.value, -self.cost.high, -self.cost.low)
        number, _, interval = show(cost).partition(" ")
        return f"{words} the last trial earns {number} {'less' if self.matters else 'more'} {interval}."


def ablation_effects(series: Series) -> tuple[AblationEffect, ...]:
    """All probes of a series: those that are known first, in the order of their severity."""
    known = list(_WORDS)
    ordered = sorted(series.probes, key=lambda probe: known.index(probe.name) if probe.name in known else len(known))
    return tuple(_result(probe) for probe in ordered)


def _result(probe: AblationReturns) -> AblationEffect:
    seeds, envs, trials = probe.intact.shape
    return AblationEffect(
        name=probe.name,
        seeds=seeds,
        envs=envs,
        intact=tuple(estimate(probe.intact[:, :, trial]) for trial in range(trials)),
        tampered=tuple(estimate(probe.tampered[:, :, trial]) for trial in range(trials)),
        cost=estimate(probe.intact[:, :, -1] - probe.tampered[:, :, -1]),
    )
