"""Episodes -> the row arrays of a store."""

from pathlib import Path

import numpy as np
from jaxtyping import Float64

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.exorl import Dims, dims_of
from ringrl.store.zarr import ColumnWriter

_MIN_CHUNK_ROWS, _MAX_CHUNK_ROWS = 250, 4096


class RowWriter:
    """Appends episodes to the arrays in a store's folder; the first episode decides the widths and the chunks.

    Attributes:
        dims: widths of the arrays; None before the first episode.
        lengths: transitions of every episode so far.
        returns: float64 [tasks], the undiscounted returns of every episode so far.
    """

    def __init__(self, folder: Path, tasks: tuple[str, ...]):
        """Write into `folder`, one `reward/TASK` for every task."""
        self.dims: Dims | None = None
        self.lengths: list[int] = []
        self.returns: list[Float64[np.ndarray, " tasks"]] = []
        self._folder = folder
        self._tasks = tasks
        self._writers: dict[str, ColumnWriter] = {}

    def append(self, episode: Episode) -> None:
        """Add an episode; one of no physics states has them 0 wide.

        Raises:
            UserError: if its widths are not those of the first, or it has not one reward column a task.
        """
        dims = dims_of(episode)
        expected = (self.dims or dims)._replace(reward=len(self._tasks))
        if dims != expected:
            raise UserError(
                f"episode {len(self.lengths)} has widths {dims}; expected {expected}: "
                "a store holds one domain, and one reward column a task"
            )
        if self.dims is None:
            self.dims = dims
            self._writers = self._open_writers(dims, chunk_rows(len(episode.observation)))
        together = (episode.observation, episode.action, episode.discount[:, None])
        self._writers["transition"].append(np.concatenate(together, axis=1))
        if dims.physics:
            self._writers["physics"].append(episode.physics)
        for column, task in enumerate(self._tasks):
            self._writers[f"reward/{task}"].append(episode.reward[:, column])
        self.lengths.append(episode.length)
        self.returns.append(episode.reward[1:].sum(axis=0, dtype=np.float64))

    def flush(self) -> None:
        """Write what is buffered."""
        for writer in self._writers.values():
            writer.flush()

    def _open_writers(self, dims: Dims, chunk: int) -> dict[str, ColumnWriter]:
        def read(name: str, *shape: int) -> ColumnWriter:
            return ColumnWriter(self._folder / name, shape, np.float32, chunk_rows=chunk)

        writers = {f"reward/{task}": read(f"reward/{task}") for task in self._tasks}
        writers["transition"] = read("transition", dims.observation + dims.action + 1)
        if dims.physics:
            path, shape = self._folder / "physics", (dims.physics,)
            writers["physics"] = ColumnWriter(path, shape, np.float64, chunk_rows=chunk, compressed=True)
        return writers


def chunk_rows(rows: int) -> int:
    """Rows of a chunk: those of the first episode, for most data sets' episodes are all of one length.

    Several times as many where they are few, since every chunk costs the reader a little; never more than 4096.
    """
    return min(rows * -(-_MIN_CHUNK_ROWS // rows), _MAX_CHUNK_ROWS)
