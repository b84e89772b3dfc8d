"""Stores of format 2, written here by TensorStore as ringrl wrote them, and what their conversion keeps."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ringrl import recipes
from ringrl.errors import UserError
from ringrl.formats.store_v2 import StoreV2
from ringrl.store import zarr
from ringrl.store.episode_store import DataSource, open_store

LENGTHS, TASKS = (5, 1, 12), ("walker_run", "walker_walk")
SOURCES = (
    DataSource("a", "a", "rnd", episodes=1, first=0, last=0),
    DataSource("b", "b", "td3", "walker_run", {"seed": 3}),
)
PROVENANCE = {
    "created": "2026-01-02T03:04:05+00:00",
    "ringrl": "0.0.1",
    "mujoco": "3.3.0",
    "relabel": "exact",
    "own": [1],
}


def write_store(path: Path, state: int = 4, lengths: tuple[int, ...] = LENGTHS, **changes) -> dict[str, np.ndarray]:
    """A store of format 2 of three episodes; its arrays by name, all but those of the episodes' ends random.

    Returns are summed over all tasks' rewards in column-major order, as they were of relabelled episodes.
    """
    rng, rows = np.random.default_rng(0), sum(lengths) + len(lengths)
    first = np.cumsum([0, *(n + 1 for n in lengths)])
    transition = rng.uniform(-1, 1, (rows, 3 + 2 + 1)).astype(np.float32)
    transition[:, -1] = 1
    transition[first[1:-1] - 1, -1] = 0  # the last episode is cut off by a time limit
    arrays = {"transition": transition, "offsets": first, "source": np.array([0, 1, 1], np.int32)}
    arrays |= {"physics": rng.normal(size=(rows, state))} if state else {}
    for task in TASKS:
        arrays[f"reward/{task}"] = (rng.normal(size=rows) * 10 ** rng.uniform(-8, 0, rows)).astype(np.float32)
    paid = np.asfortranarray(np.stack([arrays[f"reward/{task}"] for task in TASKS], axis=1))
    spans = list(zip(first[:-1], first[1:], strict=True))
    returns = np.array([paid[a + 1 : b].sum(axis=0, dtype=np.float64) for a, b in spans])
    arrays |= {f"return/{task}": column.copy() for task, column in zip(TASKS, returns.T, strict=True)}
    for name, values in arrays.items():
        writer = zarr.ColumnWriter(
            path / name, values.shape[1:], values.dtype.type, chunk_rows=4, compressed=name == "physics"
        )
        writer.append(values)
        writer.flush()
    metadata = {
        "format": "ringrl episode store",
        "version": 2,
        "domain": "walker",
        "tasks": TASKS,
        "episodes": len(lengths),
        "steps": sum(lengths),
        "dims": {"observation": 3, "action": 2, "reward": 2, "physics": state},
        "sources": [asdict(source) for source in SOURCES],
        "provenance": PROVENANCE,
    }
    (path / "store.json").write_text(json.dumps(metadata | changes))
    return arrays


def convert(old: Path, out: Path, **options) -> None:
    step = recipes.load("data", "convert_store")
    step.main(step.Args(str(old), out, **options))


@pytest.mark.parametrize("state", [4, 0])
def test_a_converted_store_has_everything_to_the_bit(tmp_path, capsys, state):
    arrays = write_store(tmp_path / "old", state)
    convert(tmp_path / "old", tmp_path / "new")
    assert "new: 3 episodes of walker, converted from" in capsys.readouterr().out
    store = open_store(tmp_path / "new")
    assert (store.domain, store.tasks, store.dims) == ("walker", TASKS, (3, 2, 2, state))
    assert store.lengths.tolist() == list(LENGTHS) and store.source.tolist() == [0, 1, 1]
    assert [asdict(source) for source in store.sources[:1]] == [asdict(SOURCES[0])]
    assert asdict(store.sources[1]) == asdict(SOURCES[1]) | {"episodes": 2, "first": 1, "last": 2}
    assert store.provenance.items() >= (PROVENANCE | {"converted_from_format": 2}).items()
    for task in TASKS:
        np.testing.assert_array_equal(store.returns(task), arrays[f"return/{task}"])
    for index, (start, length) in enumerate(zip(arrays["offsets"].tolist(), LENGTHS, strict=False)):
        rows, steps = slice(start, start + length + 1), slice(start + 1, start + length + 1)
        for task in TASKS:
            episode = store.episode(index, task)
            np.testing.assert_array_equal(episode.observation, arrays["transition"][rows, :3])
            np.testing.assert_array_equal(episode.action, arrays["transition"][steps, 3:5])
            np.testing.assert_array_equal(episode.discount, arrays["transition"][steps, 5])
            np.testing.assert_array_equal(episode.reward[:, 0], arrays[f"reward/{task}"][steps])
        assert episode.discount[-1] == (index == 2) and episode.physics.shape == (length + 1, state)
        if state:
            np.testing.assert_array_equal(store.physics(index), arrays["physics"][rows])


def test_returns_are_kept_to_the_bit_however_they_were_summed(tmp_path):
    arrays = write_store(tmp_path / "old", lengths=(1000, 1000, 1000))
    summed = np.array([episode.returns for episode, _ in StoreV2(tmp_path / "old")])
    assert any((summed[:, i] != arrays[f"return/{task}"]).any() for i, task in enumerate(TASKS))
    convert(tmp_path / "old", tmp_path / "new")
    for task in TASKS:
        np.testing.assert_array_equal(open_store(tmp_path / "new").returns(task), arrays[f"return/{task}"])


def test_an_old_store_is_refused_with_the_command_that_converts_it(tmp_path):
    write_store(tmp_path / "old")
    command = f"convert it: `ringrl data convert_store {tmp_path / 'old'} --out NEW`"
    with pytest.raises(UserError, match="old has store format 2, this ringrl reads 3") as refusal:
        open_store(tmp_path / "old")
    assert f"{command}; a run on it goes on with `ringrl train --resume RUN data.store=NEW`" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_converted_is_named_and_leaves_nothing(tmp_path):
    write_store(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UserError, match="new exists already"):
        convert(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UserError, match="new has store format 3, the present one: it needs no conversion"):
        convert(tmp_path / "new", tmp_path / "newer")
    write_store(tmp_path / "odd", sources=[{"place": "here"}])
    with pytest.raises(UserError, match="odd is damaged.*name"):
        convert(tmp_path / "odd", tmp_path / "newer")
    next(path for path in (tmp_path / "old" / "transition" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(UserError, match="old.* is damaged"):
        convert(tmp_path / "old", tmp_path / "newer")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "odd", "new"}


def test_an_end_before_an_episodes_last_step_is_refused_by_name(tmp_path):
    arrays = write_store(tmp_path / "old")
    arrays["transition"][3, -1] = 0
    for file in (tmp_path / "old" / "transition").rglob("*"):
        if file.is_file():
            file.unlink()
    writer = zarr.ColumnWriter(tmp_path / "old" / "transition", (6,), np.float32, chunk_rows=4)
    writer.append(arrays["transition"])
    writer.flush()
    with pytest.raises(UserError, match="old: episode 0: discount is 0 in step 2 of 5"):
        list(StoreV2(tmp_path / "old"))
