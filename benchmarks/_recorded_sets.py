"""Small data sets in other projects' formats, as those projects write them, but with no package of theirs.

LeRobot's files have the schema of those that lerobot 0.4.4 and, of version 2.1, lerobot 0.3.3 write: features of shape
[1] are plain columns, of one axis lists of fixed length, of more axes lists of lists; an episode is a row group, of
version 2.1 a file. Vintix's are what its loader reads.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own features of every step


def robot_episode(length: int, seed: int = 0) -> Arrays:
    """The features of an episode: a state of 3 numbers, an action of 2, a reward, and an end at the last step."""
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": (100 * rng.uniform(-1, 1, (length, 2))).astype(np.float32),
        "next.reward": rng.uniform(size=length).astype(np.float32),
        "next.done": np.arange(length) == length - 1,
    }


def write_lerobot(
    folder: Path,
    episodes: Sequence[Mapping[str, np.ndarray]],
    *,
    version: str = "v3.0",
    per_file: int = 2,
    instructions: Sequence[str] = ("Push it.",),
    pictures: bool = True,
    **info: Any,
) -> Path:
    """A data set of these episodes, each by the names of its features; `info` are changes of meta/info.json.

    Episode i shows instruction i modulo their number.
    """
    import pyarrow as pa
    from pyarrow import parquet

    features = {name: _feature(np.asarray(values)) for name, values in episodes[0].items()}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in OWN}
    if pictures:
        features["observation.images.top"] = {"dtype": "video", "shape": [3, 96, 96], "names": ["c", "h", "w"]}
    rows, total, tables = [], 0, dict[Path, list[Any]]()
    for index, episode in enumerate(episodes):
        task = index % len(instructions)
        steps = _with_own(episode, index, total, task)
        length = len(steps["index"])
        chunk, file = (0, index) if version == "v2.1" else divmod(index // per_file, 2)  # two files a chunk
        name = f"episode_{index:06d}" if version == "v2.1" else f"file-{file:03d}"
        table = pa.table({name: _column(pa, values) for name, values in steps.items()})
        tables.setdefault(folder / f"data/chunk-{chunk:03d}/{name}.parquet", []).append(table)
        row = {"episode_index": index, "tasks": [instructions[task]], "length": length}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": total, "dataset_to_index": total + length}
        row |= {"stats/action/min": np.asarray(episode["action"]).min(axis=0).tolist()}
        rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        total += length
    for path, parts in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet.ParquetWriter(path, parts[0].schema, compression="snappy", use_dictionary=True) as writer:
            for table in parts:
                writer.write_table(table)  # a row group
    _write_meta(folder, rows, features, version, total, instructions, info)
    return folder


def _write_meta(
    folder: Path,
    rows: list[dict[str, Any]],
    features: dict[str, Any],
    version: str,
    total: int,
    instructions: Sequence[str],
    info: dict[str, Any],
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    known = {"codebase_version": version, "robot_type": "arm", "total_episodes": len(rows), "total_frames": total}
    known |= {"total_tasks": len(instructions), "chunks_size": 1000, "fps": 10, "splits": {"train": f"0:{len(rows)}"}}
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    if version == "v2.1":
        known["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        lines = [{name: row[name] for name in ("episode_index", "tasks", "length")} for row in rows]
        (folder / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        known["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        path = folder / "meta/episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), path)
    (folder / "meta" / "info.json").write_text(json.dumps(known | {"features": features} | info, indent=4))


def _with_own(episode: Mapping[str, np.ndarray], index: int, total: int, task: int) -> Arrays:
    steps = len(next(iter(episode.values())))
    number = np.arange(steps)
    own = (number / 10).astype(np.float32), number, np.full(steps, index), total + number, np.full(steps, task)
    return {name: np.asarray(values) for name, values in episode.items()} | dict(zip(OWN, own, strict=True))


def _feature(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}


def _column(pa: Any, values: np.ndarray) -> Any:
    """A plain column, one of lists of fixed length or, of features on several axes, of lists of lists."""
    if values.ndim > 2:
        kind = pa.from_numpy_dtype(values.dtype)
        for _ in values.shape[1:]:
            kind = pa.list_(kind)
        return pa.array(values.tolist(), kind)
    array = pa.array(values.ravel())
    return array if values.shape[1:] in ((), (1,)) else pa.FixedSizeListArray.from_arrays(array, values.shape[1])


def learner_history(lengths: Sequence[int], seed: int = 0, widths: tuple[int, int] = (3, 2)) -> Arrays:
    """The arrays of a history of episodes of these lengths, in order; the reward of an episode is its number."""
    rng, steps = np.random.default_rng(seed), sum(lengths)
    return {
        "proprio_observation": rng.normal(size=(steps, widths[0])).astype(np.float32),
        "action": rng.uniform(-1, 1, (steps, widths[1])).astype(np.float32),
        "reward": np.repeat(np.arange(len(lengths)), lengths).astype(np.float32),
        "step_num": np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
    }


def write_vintix(
    path: Path, history: Mapping[str, np.ndarray], *, per_group: int = 10, task: str | None = None
) -> Path:
    """One history as the file `path`, in groups of some steps, and the task beside it, if it is given."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    steps = len(history["step_num"])
    with h5py.File(path, "w") as file:
        for first in range(0, steps, per_group):
            group = file.create_group(f"{first}-{min(first + per_group, steps)}")
            for name, values in history.items():
                group.create_dataset(name, data=values[first : first + per_group])
    if task is not None:
        about = {"task_name": task, "action_type": "continuous"}
        (path.parent / f"{path.parent.name}.json").write_text(json.dumps(about))
    return path
