"""Vintix's histories: episodes that go on from group to group, in their order, and what is refused."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._recorded_sets import learner_history, write_vintix
from ringrl.errors import UserError
from ringrl.formats.imported import unit_bounds
from ringrl.formats.vintix import action_width, count_episodes, open_vintix, read_history

h5py = pytest.importorskip("h5py")
LENGTHS = (4, 1, 13, 7, 25, 2)  # of which some end with a group of 10, and one goes on through three


def read(path, width=2, clip=False):
    return list(read_history(path, unit_bounds(width), clip=clip))


@pytest.mark.parametrize("per_group", [1, 3, 5, 10, 18, 1000])
def test_a_history_is_its_episodes_in_order(tmp_path, per_group):
    history = learner_history(LENGTHS)
    path = write_vintix(tmp_path / "a.h5", history, per_group=per_group)
    found = read(path)
    assert [episode.length for episode in found] == [*LENGTHS] and count_episodes(path) == len(LENGTHS)
    joined = {"proprio_observation": [e.observation[:-1] for e in found], "action": [e.action for e in found]}
    for name, parts in joined.items():
        np.testing.assert_array_equal(np.concatenate(parts), history[name])
    for number, episode in enumerate(found):
        assert (episode.reward == number).all() and episode.discount.all()
        np.testing.assert_array_equal(episode.observation[-1], episode.observation[-2])  # repeated


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(3, 40))
def test_any_division_into_groups_is_the_same_history(tmp_path_factory, lengths, per_group):
    path = write_vintix(tmp_path_factory.mktemp("v") / "a.h5", learner_history(lengths), per_group=per_group)
    assert [episode.length for episode in read(path)] == lengths


@pytest.mark.parametrize("name", ["demonstrator_action", "demonstrator_actions", "expert_action"])
def test_what_a_demonstrator_would_have_done_is_kept(tmp_path, name):
    history = learner_history(LENGTHS)
    history[name] = -2 * history["action"]
    found = list(read_history(write_vintix(tmp_path / "a.h5", history), (np.full(2, -2.0), np.full(2, 2.0))))
    shown = np.concatenate([episode.demonstrator for episode in found])
    np.testing.assert_allclose(shown, -history["action"])
    np.testing.assert_allclose(np.concatenate([episode.action for episode in found]), history["action"] / 2)


def test_a_folder_names_its_task_and_histories(tmp_path):
    for name in ("b", "a"):
        write_vintix(tmp_path / "hopper_v4" / f"{name}.h5", learner_history(LENGTHS), task="Hopper-v4")
    data = open_vintix(tmp_path / "hopper_v4")
    assert (data.name, data.task, [path.name for path in data.histories]) == (
        "hopper_v4",
        "Hopper-v4",
        ["a.h5", "b.h5"],
    )
    one = open_vintix(tmp_path / "hopper_v4" / "b.h5")
    assert (one.task, [path.name for path in one.histories]) == ("Hopper-v4", ["b.h5"])
    assert action_width(one.histories[0]) == 2
    (tmp_path / "hopper_v4" / "hopper_v4.json").unlink()
    assert open_vintix(tmp_path / "hopper_v4").task is None


def refused(path, message):
    with pytest.raises(UserError, match=message) as refusal:
        read(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def changed(name, at, value):
    history = learner_history(LENGTHS)
    history[name][at] = value
    return history


def shaped(name, shape):
    history = learner_history(LENGTHS)
    return history | {name: np.zeros((len(history["reward"]), *shape), np.float32)}


@pytest.mark.parametrize(
    "history, message",
    [
        (changed("step_num", 0, 1), "group 0-10 begins with step 1 of an episode"),
        (changed("step_num", 7, 1), "group 0-10: step_num 1 after 1: it rises, or begins again"),
        (changed("action", 3, np.nan), "episode 0: action is NaN or infinite in step 3"),
        (changed("action", 20, 1.5), "episode 3: an action is 1.5, outside"),
        (changed("reward", 6, 1e30), r"episode 2: reward is 1e\+30 in size"),
        (shaped("action", ()), r"group 0-10: action has shape \(10,\): \[steps, width\] is expected"),
        (shaped("reward", (2,)), r"group 0-10: reward has shape \(10, 2\): one number a step"),
        (shaped("proprio_observation", (3, 4, 4)), "as pixels are: give state observations"),
        ({"step_num": np.zeros(3)}, "group 0-3 has no proprio_observation"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(tmp_path, history, message):
    refused(write_vintix(tmp_path / "a.h5", history), message)


def test_what_is_no_history_is_named(tmp_path):
    for number, (change, message) in enumerate(
        [
            (lambda file: file.create_group("x"), "has 'x', where a history of Vintix's has groups such as 0-10000"),
            (lambda file: file.pop("10-20"), "group 20-30 follows 10 steps: a group is missing"),
            (lambda file: [file.pop(name) for name in list(file)], "is empty"),
            (lambda file: file["10-20"].pop("reward"), "group 10-20 has no reward"),
            (lambda file: replace(file["10-20"], "reward", np.zeros(9)), "group 10-20 has 10 of .*9 of reward"),
            (lambda file: replace(file["10-20"], "action", np.zeros((10, 5))), "group 10-20: action has shape"),
            (lambda file: huge(file["0-10"], "reward"), "group 0-10: reward is said to be larger than its file"),
            (lambda file: replace(file["0-10"], "reward", [b"a"] * 10), "group 0-10: reward is .* no numbers"),
        ]
    ):
        path = write_vintix(tmp_path / f"{number}.h5", learner_history(LENGTHS))
        with h5py.File(path, "r+") as file:
            change(file)
        refused(path, message)


def huge(group, name):
    del group[name]
    group.create_dataset(name, (2**40,), "f4", chunks=(2**10,))  # of which nothing is stored


def replace(group, name, values):
    del group[name]
    group.create_dataset(name, data=values)


def test_wrong_paths_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in [("none", "no such file or folder"), ("empty", "has no .h5 file")]:
        with pytest.raises(UserError, match=f"{name}: {message}"):
            open_vintix(tmp_path / name)
    write_vintix(tmp_path / "set" / "a.h5", learner_history(LENGTHS))
    (tmp_path / "set" / "set.json").write_text('{"task_name": "t", "action_type": "discrete"}')
    with pytest.raises(UserError, match="set.json: its actions are discrete"):
        open_vintix(tmp_path / "set")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path, share):
    path = write_vintix(tmp_path / "a.h5", learner_history(LENGTHS))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "a.h5: cannot be read: ")


def test_without_h5py_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_vintix(tmp_path / "a.h5", learner_history(LENGTHS))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"need h5py .*pip install 'ringrl\[vintix\]'"):
        open_vintix(tmp_path / "a.h5")
