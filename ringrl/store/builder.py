"""Episodes -> a store, whole or not at all."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.files import atomic_folder, user_path
from ringrl.manifest import seal
from ringrl.store.metadata import METADATA, DataSource, write_metadata
from ringrl.store.zarr import ColumnWriter, write_array

Features = Callable[[Episode], Float32[np.ndarray, "rows features"]]
"""The features of a family of rewards in every state of an episode."""

_MIN_CHUNK_ROWS, _MAX_CHUNK_ROWS = 250, 4096


def build(
    out: Path | str,
    episodes: Iterable[Episode | tuple[Episode, int]],
    *,
    domain: str,
    tasks: Sequence[str] | None = None,
    sources: Sequence[DataSource] | None = None,
    provenance: Mapping[str, Any] | None = None,
    returns: Mapping[str, Float64[np.ndarray, " episodes"]] | None = None,
    features: Mapping[str, Features] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a store from episodes that come one at a time. Memory is bounded by some 100 MB an array.

    All is written into `OUT.partial-HOST-PID`, which is renamed at the end and removed on any exception. The actions of
    a demonstrator are kept where all episodes have them.

    Args:
        out: the store's folder.
        episodes: in the order of their collection; each alone, of the first source, or with the index of its source.
        domain: such as `walker`.
        tasks: names of the reward columns in order, such as `walker_run`; None: the domain's name is that of a single
            column, and numbered that of several.
        sources: what the source indices mean; None: one source, named like the domain.
        provenance: anything that JSON can express, kept beside what is recorded anyway (time and library versions).
        returns: float64 [episodes] by task, the undiscounted returns as another store has them; None: the sums of the
            rewards. A sum depends on the order of its terms in the last bits.
        features: by the name of a family of rewards, what computes the features that its rewards read
            (`ringrl.relabelling.features`).
        overwrite: replace a store of that name.

    Returns:
        `out`.

    Raises:
        UserError: if `out` exists (unless `overwrite`), if there are no episodes, if their widths differ, or if a task
            is named twice.
        ValueError: if an episode is of a source that there is not, or if `returns` are not of all tasks and episodes.

    Example:
        >>> import numpy as np
        >>> import ringrl
        >>> def episodes():
        ...     for length in (3, 5):
        ...         observation, action = np.zeros((length + 1, 2)), np.zeros((length, 1))
        ...         yield ringrl.Episode.from_arrays(observation, action, np.ones(length), terminated=False)
        >>> store = ringrl.open_store(ringrl.build_store("stores/rig", episodes(), domain="rig", tasks=["rig_balance"]))
        >>> store.lengths.tolist(), store.returns("rig_balance").tolist()
        ([3, 5], [3.0, 5.0])
    """
    out, sources = user_path(out), [DataSource(domain, domain)] if sources is None else sources
    if tasks is not None and len(set(tasks)) < len(tasks):
        raise UserError(f"{out}: of its tasks, {', '.join(tasks)}, one is named twice; name each once")
    with atomic_folder(out, marker=METADATA, overwrite=overwrite) as partial:
        rows, source_of = RowWriter(partial, domain, tasks, features or {}), []
        for given in episodes:
            episode, source = (given, 0) if isinstance(given, Episode) else given
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
        summed = dict(zip(rows.tasks, np.asarray(rows.returns, np.float64).T, strict=True))
        for task, values in (summed if returns is None else _checked(returns, summed)).items():
            write_array(partial / "return" / task, values)
        write_metadata(
            partial,
            domain=domain,
            tasks=rows.tasks,
            families=rows.families,
            demonstrator=rows.demonstrator,
            content=rows.content,
            lengths=lengths,
            source=source,
            dims=rows.dims,
            sources=sources,
            provenance=dict(provenance or {}),
        )
        seal(partial)
    return out


def _checked(
    returns: Mapping[str, Float64[np.ndarray, " episodes"]], summed: Mapping[str, Float64[np.ndarray, " _episodes"]]
) -> Mapping[str, Float64[np.ndarray, " episodes"]]:
    """`returns`, where they are of the tasks and as many as those that the episodes' rewards sum to."""
    shapes, expected = ({task: values.shape for task, values in each.items()} for each in (returns, summed))
    if shapes != expected:
        raise ValueError(f"returns have shapes {shapes}, but the episodes need {expected}")
    return returns


class RowWriter:
    """Appends episodes to the arrays in a store's folder; the first episode decides the widths and the chunks.

    Attributes:
        dims: widths of the arrays; None before the first episode.
        tasks: names of the reward columns; those that are not given are known from the first episode on.
        lengths: steps of every episode so far.
        returns: float64 [tasks], the undiscounted returns of every episode so far.
        families: widths of the features, by the name of the family.
        demonstrator: whether all episodes so far have the actions of a demonstrator.
    """

    def __init__(self, folder: Path, domain: str, tasks: Sequence[str] | None, features: Mapping[str, Features]):
        """Write into `folder`, one `reward/TASK` for every task; the other arguments are those of `build`."""
        self.families: dict[str, int] = {}
        self.demonstrator = False
        self._features = features
        self.dims: Dims | None = None
        self.tasks: tuple[str, ...] = tuple(tasks or ())
        self.lengths: list[int] = []
        self.returns: list[Float64[np.ndarray, " tasks"]] = []
        self._folder, self._domain, self._named = folder, domain, tasks is not None
        self._writers: dict[str, ColumnWriter] = {}

    def append(self, episode: Episode) -> None:
        """Add an episode; one of no physics states has them 0 wide.

        Raises:
            UserError: if its widths are not those of the first, or it has not one reward column a task.
        """
        dims = episode.dims
        if self.dims is None and not self._named:
            columns = range(dims.reward)
            self.tasks = tuple(f"{self._domain}_{column}" for column in columns) if dims.reward > 1 else (self._domain,)
        expected = (self.dims or dims)._replace(reward=len(self.tasks))
        if dims != expected:
            raise UserError(
                f"episode {len(self.lengths)} has widths {dims}; expected {expected}: "
                "a store holds one domain, and one reward column a task"
            )
        if self.dims is None:
            self.dims, self.demonstrator = dims, episode.demonstrator is not None
            self._writers = self._open_writers(dims, chunk_rows(len(episode.observation)))
        for name, read in self._features.items():
            self._append_features(name, read(episode))
        self._append_demonstrator(episode)
        together = (episode.observation, _with_padding(episode.action), _with_padding(episode.discount[:, None]))
        self._writers["transition"].append(np.concatenate(together, axis=1))
        if dims.physics:
            self._writers["physics"].append(episode.physics)
        for column, task in enumerate(self.tasks):
            self._writers[f"reward/{task}"].append(_with_padding(episode.reward[:, column]))
        self.lengths.append(episode.length)
        self.returns.append(episode.returns)

    def _append_demonstrator(self, episode: Episode) -> None:
        if episode.demonstrator is not None and self.demonstrator:
            self._writers["demonstrator"].append(_with_padding(episode.demonstrator))
        elif self.demonstrator:
            self.demonstrator = False
            del self._writers["demonstrator"]
            shutil.rmtree(self._folder / "demonstrator")

    def _append_features(self, name: str, values: Float32[np.ndarray, "rows features"]) -> None:
        if name not in self.families:
            self.families[name], path = values.shape[1], self._folder / f"feature/{name}"
            chunk = chunk_rows(len(values))
            self._writers[f"feature/{name}"] = ColumnWriter(path, values.shape[1:], np.float32, chunk_rows=chunk)
        self._writers[f"feature/{name}"].append(values)

    def flush(self) -> None:
        """Write what is buffered."""
        for writer in self._writers.values():
            writer.flush()

    @property
    def content(self) -> dict[str, str]:
        """SHA-256 of the numbers of every array, by its name; of those that are flushed."""
        return {name: writer.digest.hexdigest() for name, writer in sorted(self._writers.items())}

    def _open_writers(self, dims: Dims, chunk: int) -> dict[str, ColumnWriter]:
        def read(name: str, *shape: int) -> ColumnWriter:
            return ColumnWriter(self._folder / name, shape, np.float32, chunk_rows=chunk)

        writers = {f"reward/{task}": read(f"reward/{task}") for task in self.tasks}
        writers["transition"] = read("transition", dims.observation + dims.action + 1)
        if self.demonstrator:
            writers["demonstrator"] = read("demonstrator", dims.action)
        if dims.physics:
            path, shape = self._folder / "physics", (dims.physics,)
            writers["physics"] = ColumnWriter(path, shape, np.float64, chunk_rows=chunk, compressed=True)
        return writers


def _with_padding(values: Float32[np.ndarray, "steps *width"]) -> Float32[np.ndarray, "rows *width"]:
    """A row of zeros at the end: nothing was done in an episode's last observation."""
    return np.concatenate([values, np.zeros_like(values[:1])])


def chunk_rows(rows: int) -> int:
    """Rows of a chunk: those of the first episode, for most data sets' episodes are all of one length.

    Several times as many where they are few, since every chunk costs the reader a little; never more than 4096.
    """
    return min(rows * -(-_MIN_CHUNK_ROWS // rows), _MAX_CHUNK_ROWS)
