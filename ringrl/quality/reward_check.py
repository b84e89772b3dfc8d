"""Stored rewards against those that our tasks give for the same states and actions."""

from typing import get_args

from ringrl.envs import tasks
from ringrl.episode import Dims, Episode
from ringrl.quality.column_difference import ColumnDifference
from ringrl.quality.consistency_report import ColumnComparison
from ringrl.relabelling.rewards import Mode, Relabeler, examine

ALL_ZERO = "says nothing: all these rewards are 0"


class RewardCheck:
    """Every reward column against every task that it may be of, in both modes."""

    def __init__(self, domain: str, dims: Dims, expected: tuple[str, ...] | None):
        """Compare with the tasks of `domain`; `expected`: those of the columns, if they are known."""
        self._expected, self._columns = expected, dims.reward
        self._relabelers: list[Relabeler] = []
        self._refused: dict[str, str] = {}
        for mode in get_args(Mode):
            found = [task_id for task_id in tasks(domain) if self._possible(task_id, dims, mode)]
            if found:
                self._relabelers.append(Relabeler(found, mode))
        self._differences = {
            (column, task_id, relabel.mode): ColumnDifference()
            for column in range(dims.reward)
            for relabel in self._relabelers
            for task_id in relabel.tasks
        }

    def _possible(self, task_id: str, dims: Dims, mode: Mode) -> bool:
        examined = examine(task_id, mode)
        misfit = examined.misfit(dims.physics, dims.observation)
        # Where nothing tells the task, it may be any that has the files' widths. One that is refused in one mode may
        # disagree in the other though its rewards are right.
        fits = (examined.physics, examined.observation) == (dims.physics, dims.observation)
        if misfit and (task_id in self._expected if self._expected else fits):
            self._refused[task_id] = f"cannot be recomputed: {misfit}"
        return misfit is None

    def add(self, episode: Episode) -> None:
        """Compare every reward of an episode."""
        rewards = {relabel.mode: relabel(episode) for relabel in self._relabelers}
        columns = {relabel.mode: relabel.tasks.index for relabel in self._relabelers}
        for (column, task_id, mode), difference in self._differences.items():
            ours = columns[mode](task_id)
            difference.add(episode.reward[:, column : column + 1], rewards[mode][:, ours : ours + 1])

    def result(self) -> tuple[ColumnComparison, ...]:
        """A comparison each column, task and mode; and of tasks that cannot be recomputed, why not."""
        found = [
            ColumnComparison(
                task_id,
                mode,
                (column, column + 1),
                difference.largest,
                difference.share,
                "" if difference.says_something else ALL_ZERO,
            )
            for (column, task_id, mode), difference in self._differences.items()
        ]
        for column in range(self._columns):
            for task_id, note in self._refused.items():
                if not self._expected or self._expected[column] == task_id:
                    found.append(ColumnComparison(task_id, "", (column, column + 1), None, None, note))
        return tuple(found)
