"""Episode stores of format 2, which ringrl wrote before format 3: read for conversion alone.

Names and shapes of the arrays are those of `ringrl.store.episode_store`, but the rows are ExoRL's. Row i >= 1 of an
episode has action[i - 1], reward[i - 1], discount[i - 1] and observation[i]; row 0 has observation[0] and a dummy row
(`ringrl.formats.exorl`), which is dropped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ringrl.episode import Episode, clipped
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.store.episode_store import array_shapes
from ringrl.store.metadata import dims_of, read_metadata
from ringrl.store.stored_arrays import StoredArrays
from ringrl.store.zarr import is_url, open_context

VERSION = 2


class StoreV2:
    """An open store of format 2.

    Attributes:
        path: its folder or URL.
        domain: such as `walker`.
        tasks: the task ids that it has rewards of.
        sources: where the episodes came from.
        provenance: versions, time, relabelling mode, as they were recorded when it was built.
    """

    def __init__(self, path: Path | str, *, clip: bool = False):
        """Open `path`; with `clip`, actions are clipped to [-1, 1].

        Raises:
            UserError: if there is no store, or one of another format, or if it is damaged or out of reach.
        """
        self.path, self._clip, context = path if is_url(path) else user_path(path), clip, open_context(0)
        metadata = read_metadata(self.path, context, VERSION)
        self.domain, self.tasks, self.sources = metadata["domain"], tuple(metadata["tasks"]), tuple(metadata["sources"])
        self.provenance: dict[str, Any] = metadata["provenance"]
        self._dims, self._episodes = dims_of(metadata), metadata["episodes"]
        shapes = array_shapes(self._dims, self.tasks, self._episodes, metadata["steps"] + self._episodes)
        self._arrays = StoredArrays(self.path, shapes, context, memory_limit=0)

    def __len__(self) -> int:
        """The number of episodes."""
        return self._episodes

    def returns(self, task: str) -> Float64[np.ndarray, " episodes"]:
        """Undiscounted return of every episode under a task, float64 [episodes], as it was stored.

        Raises:
            UserError: if a file is lost or damaged.
        """
        return self._arrays.whole(f"return/{task}")

    def __iter__(self) -> Iterator[tuple[Episode, int]]:
        """Every episode, with the rewards of all tasks and the index of its source.

        Raises:
            UserError: if a file is lost or damaged, or what is stored is no `Episode`.
        """
        offsets, source = self._arrays.whole("offsets").tolist(), self._arrays.whole("source").tolist()
        for index in range(self._episodes):
            try:
                yield self._episode(slice(offsets[index], offsets[index + 1])), source[index]
            except UserError as error:
                raise UserError(f"{self.path}: episode {index}: {error}") from error

    def _episode(self, at: slice) -> Episode:
        names = ["transition", *(f"reward/{task}" for task in self.tasks), *(["physics"] if self._dims.physics else [])]
        found = {name: parts[0] for name, parts in self._arrays.rows({name: [at] for name in names}).items()}
        rows, width = found["transition"], self._dims.observation
        action = rows[1:, width:-1]
        return Episode(
            observation=rows[:, :width],
            action=clipped(action) if self._clip else action,
            reward=np.stack([found[f"reward/{task}"][1:] for task in self.tasks], axis=1),
            discount=rows[1:, -1],
            physics=found["physics"] if self._dims.physics else np.zeros((len(rows), 0)),
        )
