"""What a check of stored episodes found; `ringrl.quality.consistency` makes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpectedFact:
    """Something that must hold of every row: what, as it should be and as it is."""

    name: str
    expected: str
    found: str
    agrees: bool


@dataclass(frozen=True)
class ColumnComparison:
    """Stored columns against recomputed ones, over all rows checked.

    Attributes:
        name: of the part of the observation, or the task.
        mode: of the reward: `exact` or `exorl`; empty for observations, and for rewards that cannot be recomputed.
        columns: the first, and the one after the last, in the stored array.
        largest_difference: between a stored and a recomputed number; None if it cannot be checked.
        share: of rows whose columns all agree; None if it cannot be checked.
        note: why it cannot be checked, or where the recomputed columns are found instead.
    """

    name: str
    mode: str
    columns: tuple[int, int]
    largest_difference: float | None
    share: float | None
    note: str = ""

    @property
    def agrees(self) -> bool:
        """False only if some row disagrees."""
        return self.share is None or self.share == 1.0


@dataclass(frozen=True)
class ConsistencyReport:
    """The outcome.

    Attributes:
        domain: such as `walker`.
        task: whose environment gave the observations; None if none has the widths of the files.
        expected_tasks: of the reward columns, where something tells them.
        episodes: checked.
        rows: checked, dummies included.
        facts: widths, lengths, ranges.
        observation: a comparison each part.
        rewards: a comparison each reward column, task and mode.
    """

    domain: str
    task: str | None
    expected_tasks: tuple[str, ...] | None
    episodes: int
    rows: int
    facts: tuple[ExpectedFact, ...]
    observation: tuple[ColumnComparison, ...] = ()
    rewards: tuple[ColumnComparison, ...] = ()

    def of_column(self, column: int) -> list[ColumnComparison]:
        """The tasks and modes with which a reward column agrees; if there is none, the nearest."""
        every = [each for each in self.rewards if each.columns[0] == column]
        wanted = self.expected_tasks[column] if self.expected_tasks else None
        matches = [each for each in every if each.agrees]
        asked_for = [each for each in matches if each.name == wanted]
        return asked_for or matches or [max(every, key=lambda each: each.share or 0.0)]

    def problems(self) -> list[str]:
        """What does not agree, a line each."""
        found = [f"{fact.name}: {fact.found}, expected {fact.expected}" for fact in self.facts if not fact.agrees]
        for part in self.observation:
            if not part.agrees:
                where = f"; {part.note}" if part.note else ""
                found.append(f"observation {part.name} agrees in {part.share:.1%} of rows{where}")
        for column in sorted({each.columns[0] for each in self.rewards}):
            nearest = self.of_column(column)[0]
            wanted = self.expected_tasks[column] if self.expected_tasks else nearest.name
            if not nearest.agrees:
                found.append(
                    f"reward column {column} agrees with no task, in {nearest.share:.1%} of rows with {wanted}"
                )
            elif nearest.name != wanted:
                found.append(f"reward column {column} agrees with {nearest.name}, not with {wanted}")
        return found
