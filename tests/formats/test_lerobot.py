"""LeRobot data sets as its writer lays them out: what is read, to the bit, and what is refused."""

import json
import sys

import numpy as np
import pytest

from benchmarks._recorded_sets import robot_episode, write_lerobot
from ringrl.errors import UserError
from ringrl.formats.lerobot import action_span, choose_features, read_lerobot
from ringrl.formats.lerobot_index import open_lerobot

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

LENGTHS = (4, 7, 2, 5, 3)
EPISODES = [robot_episode(length, seed) for seed, length in enumerate(LENGTHS)]
SPAN = np.full(2, -100.0), np.full(2, 100.0)


FIRST, STATE = "data/chunk-000/file-000.parquet", "observation.state"


def rewrite(path, change):
    """The file's table as `change` makes it of the table that was there."""
    table = parquet.read_table(path)
    parquet.write_table(change(table), path)


def with_column(name, values):
    return lambda table: table.set_column(table.schema.get_field_index(name), name, values(table))


def read(folder, bounds=SPAN, clip=False, instructions=(), **features):
    data = open_lerobot(folder, instructions)
    return list(read_lerobot(data, choose_features(data, **features), bounds, clip=clip))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_step_is_read_in_order(tmp_path, version):
    found = read(write_lerobot(tmp_path / "set", EPISODES, version=version))
    assert [episode.length for episode in found] == [*LENGTHS]
    for episode, written in zip(found, EPISODES, strict=True):
        np.testing.assert_array_equal(episode.observation[:-1], written["observation.state"])
        np.testing.assert_array_equal(episode.observation[-1], written["observation.state"][-1])  # repeated
        np.testing.assert_allclose(episode.action, written["action"] / 100, rtol=1e-6)
        np.testing.assert_array_equal(episode.reward[:, 0], written["next.reward"])
        np.testing.assert_array_equal(episode.discount == 0, written["next.done"])


def test_files_of_lerobots_own_conversion_are_read_too(tmp_path):
    """It writes one row group a file, and lists without a fixed length."""
    folder = write_lerobot(tmp_path / "set", EPISODES)
    before = read(folder)
    rewrite(
        folder / FIRST, with_column(STATE, lambda table: pa.array(table[STATE].to_pylist(), pa.list_(pa.float32())))
    )
    assert parquet.read_metadata(folder / FIRST).num_row_groups == 1
    for first, second in zip(before, read(folder), strict=True):
        np.testing.assert_array_equal(first.observation, second.observation)


def test_many_episodes_are_in_one_file_and_many_files_in_one_set(tmp_path):
    data = open_lerobot(write_lerobot(tmp_path / "set", EPISODES))
    assert [str(each.path.relative_to(tmp_path)) for each in data.episodes] == [
        f"set/data/chunk-{chunk:03d}/file-{file:03d}.parquet"
        for chunk, file in ((0, 0), (0, 0), (0, 1), (0, 1), (1, 0))
    ]
    assert data.unread == ("observation.images.top",)


def test_features_are_chosen_and_joined(tmp_path):
    force = np.arange(12.0).reshape(4, 1, 3)
    episode = EPISODES[0] | {"observation.force": force, "observation.state.q": np.arange(4), "won": np.arange(4) == 3}
    folder = write_lerobot(tmp_path / "set", [episode])
    wanted = ("observation.state.q", "observation.force", "observation.state")
    (found,) = read(folder, observation=wanted, reward="won", done=False)
    state = [np.arange(4)[:, None], force[:, 0], EPISODES[0]["observation.state"]]
    np.testing.assert_array_equal(found.observation[:-1], np.hstack(state).astype(np.float32))
    assert found.reward[:, 0].tolist() == [0, 0, 0, 1] and found.discount.all()
    (plain,) = read(folder)  # a name with a dot is no prefix
    assert plain.dims.observation == 3


def test_without_rewards_and_ends_they_are_zero_and_unknown(tmp_path):
    few = {name: EPISODES[0][name] for name in ("observation.state", "action")}
    (found,) = read(write_lerobot(tmp_path / "set", [few]))
    assert not found.reward.any() and found.discount.all()


def test_a_truncated_episode_did_not_end(tmp_path):
    episode = EPISODES[0] | {"next.truncated": EPISODES[0]["next.done"]}
    (found,) = read(write_lerobot(tmp_path / "set", [episode]))
    assert found.discount.all()


def test_instructions_choose_episodes(tmp_path):
    folder = write_lerobot(tmp_path / "set", EPISODES, instructions=("Push it.", "Lift it."))
    assert [episode.length for episode in read(folder, instructions=["Lift it."])] == [7, 5]
    assert open_lerobot(folder).instructions == ("Lift it.", "Push it.")
    with pytest.raises(UserError, match="no episode shows 'Eat it.'; its instructions are: Lift it.; Push it."):
        open_lerobot(folder, ["Eat it."])


def test_the_span_of_actions_is_that_of_all_files(tmp_path):
    episodes = [robot_episode(9, seed) for seed in range(4)]
    for episode in episodes:
        episode["action"][:, 1] = 37.5  # never moves
    data = open_lerobot(write_lerobot(tmp_path / "set", episodes))
    low, high = action_span([(data, choose_features(data))])
    actions = np.concatenate([episode["action"][:, 0] for episode in episodes])
    assert (low[0], high[0]) == (actions.min(), actions.max()) and (low[1], high[1]) == (36.5, 38.5)
    found = np.concatenate([e.action for e in read_lerobot(data, choose_features(data), (low, high))])
    assert (found.min(axis=0)[0], found.max(axis=0)[0]) == (-1, 1) and not found[:, 1].any()


def refused(folder, message, **options):
    with pytest.raises(UserError, match=message) as refusal:
        read(folder, **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "info, options, message",
    [
        ({"codebase_version": "v1.6"}, {}, "is of LeRobot's version v1.6, and v2 and v3 are read; convert it"),
        ({"codebase_version": 3}, {}, "info.json: `codebase_version`: "),
        ({"total_episodes": 6}, {}, "lists 5 episodes, and not numbers 0 to 5"),
        ({"data_path": "../{chunk_index}"}, {}, "data_path is not data/chunk"),
        ({"features": {}}, {}, "has no feature observation.state; it has none"),
        ({}, {"observation": ("observation.images.top",)}, "observation.images.top is video, and nothing here learns"),
        ({}, {"action": ("act",)}, "has no feature act; it has action, episode_index"),
        ({}, {"reward": "action"}, r"action has shape \[2\] a step; a single number is needed"),
    ],
)
def test_what_a_description_does_not_fit_is_named(tmp_path, info, options, message):
    refused(write_lerobot(tmp_path / "set", EPISODES, **info), message, **options)


def test_another_shape_than_described_is_named(tmp_path):
    folder = write_lerobot(tmp_path / "set", EPISODES)
    about = json.loads((folder / "meta/info.json").read_text())
    about["features"]["observation.state"]["shape"] = [5]
    (folder / "meta/info.json").write_text(json.dumps(about))
    refused(folder, r"observation.state has shape \(3,\) a step, meta/info.json says \(5,\)")


@pytest.mark.parametrize(
    "file, change, message",
    [
        (FIRST, lambda table: table.drop_columns([STATE]), "has no column observation.state"),
        (FIRST, lambda table: table.slice(1), "episode 0: has 3 steps, not 0 to 3 in order"),
        (FIRST, lambda table: table.take([0, 2, 1, *range(3, 11)]), "episode 0: has 4 steps, not 0 to 3 in order"),
        (FIRST, lambda table: table.take([0, 1, 4, 2, 3, *range(5, 11)]), "steps of an episode are not together"),
        (FIRST, with_column(STATE, lambda t: pa.array([[1.0]] * 10 + [[1.0, 2.0]])), "of unequal lengths, 1 to 2"),
        (FIRST, with_column(STATE, lambda t: pa.array([[1.0]] * 10 + [None])), "has rows without a value"),
        (FIRST, with_column(STATE, lambda t: pa.array(["a"] * 11)), "is string, no numbers"),
        (FIRST, with_column("episode_index", lambda t: pa.array([np.nan] * 11)), "episode_index is float64, no whole"),
        (
            FIRST,
            lambda table: pa.table({"index": np.zeros(2**20 + 1, np.int8)}),
            "is said to have 1048577 rows, more than",
        ),
        ("meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(1), "lists 4 episodes, and not"),
        (
            "meta/episodes/chunk-000/file-000.parquet",
            with_column("length", lambda t: pa.array([-1] * 5)),
            "must be whole numbers from 0 on",
        ),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, file, change, message):
    folder = write_lerobot(tmp_path / "set", EPISODES)
    rewrite(folder / file, change)
    refused(folder, message)


def test_missing_files_are_named(tmp_path):
    refused(tmp_path / "none", "none: has no meta/info.json")
    folder = write_lerobot(tmp_path / "set", EPISODES)
    (folder / "data/chunk-001/file-000.parquet").unlink()
    refused(folder, "chunk-001/file-000.parquet: no such file")
    (folder / "meta/episodes/chunk-000/file-000.parquet").unlink()
    refused(folder, "has no chunk-")


def test_a_damaged_line_of_version_2_is_named(tmp_path):
    folder = write_lerobot(tmp_path / "set", EPISODES, version="v2.1")
    lines = (folder / "meta/episodes.jsonl").read_text().splitlines()
    (folder / "meta/episodes.jsonl").write_text("\n".join([*lines[:2], lines[2][:9]]))
    refused(folder, "episodes.jsonl line 3: Invalid JSON")


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    folder = write_lerobot(tmp_path / "set", EPISODES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(folder, r"need PyArrow .*pip install 'ringrl\[lerobot\]'")
