"""The episode store: a folder of Zarr v3 arrays, read and written through TensorStore, built once and never half.

`NAME/store.json` says what is inside. Episodes are stored one after another, T + 1 rows each: row t of an episode is
its step t, and its last row has its last observation, with zeros in place of an action, a discount and a reward. The
arrays of rows are `transition` float32 [rows, observation + action + 1], whose last column is the discount;
`reward/TASK` float32 [rows], one array a task; `physics` float64 [rows, state], where there are states; `demonstrator`
float32 [rows, action], where all episodes have it: what a demonstrator would have done before each step; and
`feature/FAMILY` float32 [rows, features], what the rewards of a family read: row t + 1 of an episode follows its step
t. Per episode there are `offsets` int64 [episodes + 1] (first rows), `source` int32 [episodes] (index into the sources)
and `return/TASK` float64 [episodes]. Any Zarr v3 reader can open them. What training reads together is stored together,
and a chunk is an episode where all are of one length.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from ringrl.episode import Dims, Episode, StepSpan
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.manifest import MANIFEST, note_unverified
from ringrl.store.builder import build
from ringrl.store.metadata import DataSource, dims_of, read_metadata, unreadable
from ringrl.store.stored_arrays import StoredArrays
from ringrl.store.stored_bounds import check_bounds
from ringrl.store.verified import verify_descriptions
from ringrl.store.zarr import is_url, open_context

__all__ = ["DataSource", "Store", "build", "open_store"]

# Of another machine's chunks. Those of this one's disk are in the system's own cache, and a second copy costs time.
_CACHE_BYTES = 2**27


class Steps(NamedTuple):
    """n environment steps of one episode without rewards, as in `ringrl.episode.StepSpan`."""

    observation: Float32[np.ndarray, "steps_and_one observation"]
    action: Float32[np.ndarray, "steps action"]
    discount: Float32[np.ndarray, " steps"]


class Store:
    """An open store. Open it with `open_store`; it can be pickled, and opens itself again where it arrives.

    Attributes:
        path: its folder or URL.
        domain: such as `walker`.
        tasks: the task ids that it has rewards of.
        families: names of the families of rewards that it has the features of, and the number of these.
        demonstrator: whether it has the actions of a demonstrator.
        content: SHA-256 of the numbers of every array, by its name; empty in a store of an earlier ringrl.
        episodes: their number.
        lengths: int64 [episodes], environment steps of each.
        source: int32 [episodes], index into `sources`.
        sources: where the episodes came from.
        dims: widths of the arrays; `reward` is the number of tasks.
        provenance: versions, time, relabelling mode.
        verified: whether its descriptions were compared with their hashes; a store of an earlier ringrl has none.
    """

    def __init__(self, path: Path | str, memory_limit: int = 0, chosen: Int64[np.ndarray, " episodes"] | None = None):
        """Read the metadata; arrays are read when asked for. See `open_store` and `part`."""
        self.path, self._memory_limit = path, memory_limit
        context = open_context(_CACHE_BYTES if is_url(path) else 0)
        self.verified = verify_descriptions(path, context)
        metadata = read_metadata(path, context)
        if metadata.get("manifest") and not self.verified:
            raise unreadable(path, f"its {MANIFEST} is missing: a copy that was cut off?")
        self.domain, self.tasks = metadata["domain"], tuple(metadata["tasks"])
        self.families = metadata.get("families", {})
        self.demonstrator = metadata.get("demonstrator", False)
        self.content = metadata.get("content", {})
        self._in_file: int = metadata["episodes"]
        self._chosen, self.sources = chosen, tuple(metadata["sources"])
        self.episodes = self._in_file if chosen is None else len(chosen)
        self.dims = dims_of(metadata)
        self.provenance: dict[str, Any] = metadata["provenance"]
        self._rows: int = metadata["steps"] + self._in_file
        shapes = array_shapes(self.dims, self.tasks, self._in_file, self._rows)
        shapes |= {f"feature/{name}": (self._rows, width) for name, width in self.families.items()}
        shapes |= {"demonstrator": (self._rows, self.dims.action)} if self.demonstrator else {}
        check = partial(check_bounds, path, observation=self.dims.observation)
        self._arrays = StoredArrays(path, shapes, context, memory_limit, check)
        if self.dims.reward != len(self.tasks):
            raise unreadable(path, "its episodes, tasks and widths disagree")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path."""
        return Store, (self.path, self._memory_limit, self._chosen)

    @property
    def numbers(self) -> Int64[np.ndarray, " episodes"]:
        """The number that each episode has in the file; of a part of a store not all of them."""
        return np.arange(self._in_file, dtype=np.int64) if self._chosen is None else self._chosen

    def _of_part(self, values: np.ndarray) -> np.ndarray:
        """Of an array over all episodes of the file, those of this part."""
        return values if self._chosen is None else values[self._chosen]

    def part(self, chosen: Int64[np.ndarray, " episodes"]) -> "Store":
        """The same store with these of its episodes alone, numbered from 0 in this order."""
        return Store(self.path, self._memory_limit, self.numbers[chosen])

    @cached_property
    def _offsets(self) -> Int64[np.ndarray, " episodes_and_end"]:
        offsets = self._arrays.whole("offsets")
        if offsets[0] != 0 or offsets[-1] != self._rows or np.diff(offsets).min() < 2:
            raise unreadable(self.path, "its offsets are not those of its episodes")
        return offsets

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, " episodes"]:
        return self._of_part(np.diff(self._offsets) - 1)

    @cached_property
    def _first_rows(self) -> Int64[np.ndarray, " episodes"]:
        return self._of_part(self._offsets[:-1])

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Environment steps of every episode."""
        return self._lengths

    @property
    def source(self) -> Int32[np.ndarray, " episodes"]:
        """Index into `sources` of every episode."""
        return self._of_part(self._arrays.whole("source"))

    def returns(self, task: str) -> Float64[np.ndarray, " episodes"]:
        """Undiscounted return of every episode under a task.

        Raises:
            UserError: if the store has no such task, or cannot be read.
        """
        self._check_task(task)
        return self._of_part(self._arrays.whole(f"return/{task}"))

    def read(self, episode: int, start: int, stop: int, task: str) -> StepSpan:
        """Steps `start:stop` of one episode, with the rewards of one task; errors as `read_many`."""
        return self.read_many([(episode, start, stop)], task)[0]

    def read_many(
        self, spans: Sequence[tuple[int, int, int]], task: str, *, demonstrator: bool = False
    ) -> list[StepSpan]:
        """Steps `start:stop` of each (episode, start, stop), all read at the same time. The arrays are views.

        Args:
            spans: of the steps.
            task: whose rewards.
            demonstrator: whether the spans shall have the demonstrator's actions.

        Raises:
            UserError: if the store has no such task or no demonstrator, or a file of it is lost or damaged.
            IndexError: if a span is empty or beyond its episode.
        """
        self._check_task(task)
        if demonstrator and not self.demonstrator:
            raise UserError(f"{self.path} has no actions of a demonstrator: not all its episodes were built with them")
        name = f"reward/{task}"
        found = self._read({"transition": 1, name: 0} | ({"demonstrator": 1} if demonstrator else {}), spans)
        shown = [rows[:-1] for rows in found["demonstrator"]] if demonstrator else [None] * len(spans)
        return [
            StepSpan(observation, action, reward[start:], discount, reward[:start], would)
            for (observation, action, discount), reward, (_, start, _), would in zip(
                map(self._parted, found["transition"]), found[name], spans, shown, strict=True
            )
        ]

    def read_steps(self, spans: Sequence[tuple[int, int, int]]) -> list[Steps]:
        """As `read_many`, without rewards: observations, actions and discounts as of `StepSpan`.

        Raises:
            UserError: if a file is lost or damaged.
            IndexError: if a span is empty or beyond its episode.
        """
        return [self._parted(block) for block in self._read({"transition": 1}, spans)["transition"]]

    def _read(self, names: Mapping[str, int], spans: Sequence[tuple[int, int, int]]) -> dict[str, list[np.ndarray]]:
        """Rows of the spans' steps: with 1, from `start` to the row after the last; with 0, of all until the last."""
        for span in spans:
            self._check_span(*span)
        if not spans:
            return {name: [] for name in names}
        first = self.first_rows[[episode for episode, _, _ in spans]].tolist()
        rows = [(row, row + start, row + stop) for row, (_, start, stop) in zip(first, spans, strict=True)]
        steps, paid = [slice(a, b + 1) for _, a, b in rows], [slice(begin, b) for begin, _, b in rows]
        return self._arrays.rows({name: steps if after else paid for name, after in names.items()})

    def _parted(self, block: np.ndarray) -> Steps:
        width = self.dims.observation
        if not block[:-2, -1].all():  # the last step of a span alone may be that of its episode
            raise unreadable(self.path, "discount is 0 before the last step of an episode: are these several episodes?")
        return Steps(block[:, :width], block[:-1, width:-1], block[:-1, -1])

    def features(self, family: str) -> Float32[np.ndarray, "rows features"]:
        """What the rewards of a family read, in all rows of all episodes; it is kept in memory.

        Row `first_rows[e] + t + 1` follows step t of episode e.

        Raises:
            UserError: if the store has no features of the family, or a file of it is lost or damaged.
        """
        if family not in self.families:
            has = ", ".join(self.families) or "none"
            raise UserError(
                f"{self.path} has no features of {family} (it has {has}); build it with `--families {family}`"
            )
        return self._arrays.whole(f"feature/{family}")

    @property
    def sizes(self) -> dict[str, int]:
        """Widths of `observation` and `action`."""
        return {"observation": self.dims.observation, "action": self.dims.action}

    @property
    def first_rows(self) -> Int64[np.ndarray, " episodes"]:
        """The row of every episode's first step."""
        return self._first_rows

    def episode(self, index: int, task: str) -> Episode:
        """One whole episode, with the rewards of one task, and the physics states and a demonstrator, if there are any.

        Raises:
            UserError: as `read_many`.
            IndexError: if there is no such episode.
        """
        self._check_span(index, 0, 1)
        (steps,) = self.read_many([(index, 0, int(self.lengths[index]))], task, demonstrator=self.demonstrator)
        states = self.physics(index) if self.dims.physics else np.zeros((len(steps.observation), 0))
        try:
            paid = steps.reward[:, None]
            return Episode(steps.observation, steps.action, paid, steps.discount, states, steps.demonstrator)
        except UserError as error:
            raise UserError(f"{self.path}: episode {index}: {error}") from error

    def physics(self, episode: int) -> Float64[np.ndarray, "steps_and_one state"]:
        """The physics states of one episode, one for every observation: [length + 1, state].

        Raises:
            UserError: if the store has none, or a file of it is lost or damaged.
            IndexError: if there is no such episode.
        """
        self._check_span(episode, 0, 1)
        if not self.dims.physics:
            raise UserError(f"{self.path} has no physics states: what it was built from had none")
        first = int(self.first_rows[episode])
        rows = slice(first, first + int(self.lengths[episode]) + 1)
        return self._arrays.rows({"physics": [rows]})["physics"][0]

    def _check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise UserError(f"{self.path} has no rewards of {task!r}; it has {', '.join(self.tasks)}")

    def _check_span(self, episode: int, start: int, stop: int) -> None:
        if not (0 <= episode < self.episodes and 0 <= start < stop <= self.lengths[episode]):
            length = self.lengths[episode] if 0 <= episode < self.episodes else "none"
            raise IndexError(
                f"steps {start}:{stop} of episode {episode}: {self.episodes} episodes, its length {length}"
            )


def array_shapes(dims: Dims, tasks: Sequence[str], episodes: int, rows: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of a store's arrays by its name."""
    shapes = {"transition": (rows, dims.observation + dims.action + 1)}
    shapes |= {"offsets": (episodes + 1,), "source": (episodes,)}
    shapes |= {"physics": (rows, dims.physics)} if dims.physics else {}
    shapes |= {f"reward/{task}": (rows,) for task in tasks}
    return shapes | {f"return/{task}": (episodes,) for task in tasks}


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
    store = Store(path if is_url(path) else user_path(path), memory_limit)
    if not store.verified:
        note_unverified(store.path)
    return store
