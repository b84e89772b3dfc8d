"""The episode store: a folder of Zarr v3 arrays, read and written through TensorStore, built once and never half.

`NAME/store.json` tells what is inside. The arrays hold all episodes' rows one after another, ExoRL's dummy rows
included: `transition` float32 [rows, observation + action + 1], whose last column is the discount; `reward/TASK`
float32 [rows], one array a task; and `physics` float64 [rows, state], where there are states. Per episode there are
`offsets` int64 [episodes + 1] (first rows), `source` int32 [episodes] (index into the sources) and `return/TASK`
float64 [episodes]. Any Zarr v3 reader can open them. What training reads together lies together, and a chunk is an
episode where all are of one length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float32, Float64, Int32, Int64

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.files import atomic_folder
from ringrl.formats.exorl import Dims
from ringrl.store.metadata import METADATA, DataSource, read_metadata, unreadable, write_metadata
from ringrl.store.row_writer import RowWriter
from ringrl.store.zarr import is_url, open_array, open_context, write_array

__all__ = ["DataSource", "StepSpan", "Store", "build", "open_store"]

_LARGE = ("transition", "reward/")  # the arrays with a number for every step
# Of another machine's chunks. Those of this one's disk are in the system's own cache, and a second copy costs time.
_CACHE_BYTES = 2**27


@dataclass(frozen=True)
class StepSpan:
    """n consecutive steps of one episode, by the step convention of `ringrl.episode`."""

    observation: Float32[np.ndarray, "n observation"]  # in which the action was taken
    action: Float32[np.ndarray, "n action"]
    reward: Float32[np.ndarray, " n"]
    discount: Float32[np.ndarray, " n"]
    earlier: Float32[np.ndarray, " start"]  # the rewards of the episode's steps before these


def build(
    out: Path | str,
    episodes: Iterable[tuple[Episode, int]],
    *,
    domain: str,
    tasks: Sequence[str],
    sources: Sequence[DataSource],
    provenance: dict[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a store from episodes that come one at a time. Memory is bounded by some 100 MB an array.

    All is written into `OUT.partial-HOST-PID`, which is renamed at the end and removed on any exception.

    Args:
        out: the store's folder.
        episodes: each with the index of its source; reward columns in the order of `tasks`.
        domain: such as `walker`.
        tasks: task ids, such as `walker_run`.
        sources: what the source indices mean.
        provenance: anything that JSON can hold, kept beside what is recorded anyway (time and library versions).
        overwrite: replace a store of that name.

    Returns:
        `out`.

    Raises:
        UserError: if `out` exists (unless `overwrite`), if there are no episodes, if their widths differ, or if a task
            is named twice.
    """
    out = Path(out)
    if len(set(tasks)) < len(tasks):
        raise UserError(f"{out}: of its tasks, {', '.join(tasks)}, one is named twice; name each once")
    with atomic_folder(out, marker=METADATA, overwrite=overwrite) as partial:
        rows = RowWriter(partial, tuple(tasks))
        source_of = []
        for episode, source in episodes:
            if not 0 <= source < len(sources):
                raise ValueError(f"episode {len(source_of)} is of source {source}, but there are {len(sources)}")
            rows.append(episode)
            source_of.append(source)
        if rows.dims is None:
            raise UserError(f"no episodes to build {out} from")
        rows.flush()
        lengths, source = np.asarray(rows.lengths, np.int64), np.asarray(source_of, np.int32)
        write_array(partial / "offsets", np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + 1)]))
        write_array(partial / "source", source)
        for task, returns in zip(tasks, np.asarray(rows.returns, np.float64).T, strict=True):
            write_array(partial / "return" / task, returns)
        write_metadata(
            partial,
            domain=domain,
            tasks=tasks,
            lengths=lengths,
            source=source,
            dims=rows.dims,
            sources=sources,
            provenance=provenance,
        )
    return out


class Store:
    """An open store. Open it with `open_store`; it can be pickled, and opens itself again where it arrives.

    Attributes:
        path: its folder or URL.
        domain: such as `walker`.
        tasks: the task ids that it has rewards of.
        episodes: their number.
        lengths: int64 [episodes], transitions of each.
        source: int32 [episodes], index into `sources`.
        sources: where the episodes came from.
        dims: widths of the arrays; `reward` is the number of tasks.
        provenance: versions, time, relabelling mode.
    """

    def __init__(self, path: Path | str, memory_limit: int = 0):
        """Read what the arrays are; what is in them is read when asked for. See `open_store`."""
        self.path, self._memory_limit = path, memory_limit
        self._resident: dict[str, np.ndarray] = {}
        self._lock = RLock()
        context = open_context(_CACHE_BYTES if is_url(path) else 0)
        metadata = read_metadata(path, context)
        try:
            self.domain: str = metadata["domain"]
            self.tasks: tuple[str, ...] = tuple(metadata["tasks"])
            self.episodes: int = metadata["episodes"]
            self.dims = Dims(**metadata["dims"])
            self.sources = tuple(DataSource(**source) for source in metadata["sources"])
            self.provenance: dict[str, Any] = metadata["provenance"]
            self._rows: int = metadata["steps"] + self.episodes
            shapes = self._shapes()
            futures = {name: open_array(path, name, context) for name in shapes}
            self._arrays: dict[str, ts.TensorStore] = {name: future.result() for name, future in futures.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from error
        for name, shape in shapes.items():
            if tuple(self._arrays[name].shape) != shape:
                raise unreadable(path, f"{name} has shape {tuple(self._arrays[name].shape)}, not {shape}")
        if self.dims.reward != len(self.tasks) or not self.episodes:
            raise unreadable(path, "its episodes, tasks and widths disagree")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        rows, dims = self._rows, self.dims
        shapes = {"transition": (rows, dims.observation + dims.action + 1)}
        shapes |= {"offsets": (self.episodes + 1,), "source": (self.episodes,)}
        shapes |= {"physics": (rows, dims.physics)} if dims.physics else {}
        shapes |= {f"reward/{task}": (rows,) for task in self.tasks}
        return shapes | {f"return/{task}": (self.episodes,) for task in self.tasks}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path."""
        return Store, (self.path, self._memory_limit)

    @cached_property
    def _offsets(self) -> Int64[np.ndarray, " episodes_and_end"]:
        offsets = self._whole("offsets")
        if offsets[0] != 0 or offsets[-1] != self._rows or np.diff(offsets).min() < 2:
            raise unreadable(self.path, "its offsets are not those of its episodes")
        return offsets

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, " episodes"]:
        return np.diff(self._offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Transitions of every episode."""
        return self._lengths

    @property
    def source(self) -> Int32[np.ndarray, " episodes"]:
        """Index into `sources` of every episode."""
        return self._whole("source")

    def returns(self, task: str) -> Float64[np.ndarray, " episodes"]:
        """Undiscounted return of every episode under a task.

        Raises:
            UserError: if the store has no such task, or cannot be read.
        """
        self._check_task(task)
        return self._whole(f"return/{task}")

    def read(self, episode: int, start: int, stop: int, task: str) -> StepSpan:
        """Steps `start:stop` of one episode, with the rewards of one task; errors as `read_many`."""
        return self.read_many([(episode, start, stop)], task)[0]

    def read_many(self, spans: Sequence[tuple[int, int, int]], task: str) -> list[StepSpan]:
        """Steps `start:stop` of each (episode, start, stop), all read at the same time. The arrays are views.

        Raises:
            UserError: if the store has no such task, or a file of it is lost or damaged.
            IndexError: if a span is empty or beyond its episode.
        """
        self._check_task(task)
        for span in spans:
            self._check_span(*span)
        if not spans:
            return []
        first = self._offsets[[episode for episode, _, _ in spans]].tolist()
        # The observation before an action is in the row before the action's.
        rows = [slice(row + start, row + stop + 1) for row, (_, start, stop) in zip(first, spans, strict=True)]
        paid = [slice(row + 1, row + 1 + stop) for row, (_, _, stop) in zip(first, spans, strict=True)]
        wanted = {"transition": rows, f"reward/{task}": paid}
        found = self._resident_rows(wanted)
        found |= self._read_rows({name: rows for name, rows in wanted.items() if name not in found})
        transitions, rewards = (found[name] for name in wanted)
        width = self.dims.observation
        return [
            StepSpan(
                observation=block[:-1, :width],
                action=block[1:, width:-1],
                reward=reward[start:],
                discount=block[1:, -1],
                earlier=reward[:start],
            )
            for block, reward, (_, start, _) in zip(transitions, rewards, spans, strict=True)
        ]

    def _resident_rows(self, wanted: dict[str, list[slice]]) -> dict[str, list[np.ndarray]]:
        """These rows of those arrays that are kept in memory: the smallest, as many as may be."""
        found = {}
        for name in sorted(wanted, key=self._bytes):
            with self._lock:
                kept = sum(self._bytes(each) for each in self._resident if each.startswith(_LARGE))
                fits = name in self._resident or kept + self._bytes(name) <= self._memory_limit
                whole = self._whole(name) if fits else None
            if whole is not None:
                found[name] = [whole[at] for at in wanted[name]]
        return found

    def _bytes(self, name: str) -> int:
        return self._arrays[name].size * self._arrays[name].dtype.numpy_dtype.itemsize

    def _read_rows(self, wanted: dict[str, list[slice]]) -> dict[str, list[np.ndarray]]:
        """These rows of these arrays, read from the disk."""
        with ts.Batch() as batch:
            # One read of what is to stand together costs half of as many reads as there are spans.
            joined = {name: ts.concat([self._arrays[name][at] for at in rows], axis=0) for name, rows in wanted.items()}
            futures = {name: array.read(batch=batch) for name, array in joined.items()}
        found = {}
        for name, future in futures.items():
            values, ends = self._result(future), list(accumulate(at.stop - at.start for at in wanted[name]))
            found[name] = [values[start:stop] for start, stop in pairwise([0, *ends])]
        return found

    def _whole(self, name: str) -> np.ndarray:
        """All of an array, which is kept in memory from now on."""
        with self._lock:  # else a loader's threads would each read it
            if name not in self._resident:
                with ts.Batch() as batch:  # so that a file of many chunks is read at once
                    future = self._arrays[name].read(batch=batch)
                whole = self._result(future)
                whole.flags.writeable = False  # others hold views of it
                self._resident[name] = whole
            return self._resident[name]

    def physics(self, episode: int) -> Float64[np.ndarray, "rows state"]:
        """The physics states of one episode, the first one included: [length + 1, state].

        Raises:
            UserError: if the store has none, or a file of it is lost or damaged.
            IndexError: if there is no such episode.
        """
        self._check_span(episode, 0, 1)
        if not self.dims.physics:
            raise UserError(f"{self.path} has no physics states: what it was built from had none")
        return self._result(self._arrays["physics"][self._offsets[episode] : self._offsets[episode + 1]].read())

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:
            raise unreadable(self.path, error) from error

    def _check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise UserError(f"{self.path} has no rewards of {task!r}; it has {', '.join(self.tasks)}")

    def _check_span(self, episode: int, start: int, stop: int) -> None:
        if not (0 <= episode < self.episodes and 0 <= start < stop <= self.lengths[episode]):
            length = self.lengths[episode] if 0 <= episode < self.episodes else "none"
            raise IndexError(
                f"steps {start}:{stop} of episode {episode}: {self.episodes} episodes, its length {length}"
            )


def open_store(path: Path | str, *, memory_limit: int = 2**29) -> Store:
    """Open a store for reading. What this costs does not depend on how much is in it.

    Args:
        path: its folder, or its URL: `gs://bucket/walker`, `s3://...`, `https://...`.
        memory_limit: bytes. Of the arrays that `read_many` needs, the smallest are kept in memory from their first use
            on, as many as take no more than this together: rewards mostly, and in a small store everything.

    Raises:
        UserError: if there is nothing, or no store, or one of another format, or if it is damaged or out of reach.

    Example:
        >>> import ringrl
        >>> store = ringrl.open_store("stores/cartpole")
        >>> store.domain, store.tasks, store.episodes
        ('cartpole', ('cartpole_balance', 'cartpole_swingup'), 8)
        >>> store.read(0, 3, 5, "cartpole_balance").action.shape  # steps 3 and 4 of episode 0
        (2, 1)
    """
    return Store(path if is_url(path) else Path(path), memory_limit)
