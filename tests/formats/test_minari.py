"""Episodes as Minari data sets: bounds of actions, order, flattened observations, and errors."""

import sys

import gymnasium
import numpy as np
import pytest

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.imported import domain_of
from ringrl.formats.minari import flatten_observations, open_dataset, read_episodes, write_dataset
from tests.builders import make_episode

minari = pytest.importorskip("minari")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where Minari keeps its data sets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_bounds_that_are_not_one_are_mapped_both_ways(root):
    episode = make_episode(widths=(348, 17, 1, 47))
    write_dataset("humanoid-v0", [episode], "Humanoid-v5", description="for a test")
    dataset = minari.load_dataset("humanoid-v0")
    np.testing.assert_allclose(dataset[0].actions, 0.4 * episode.action, rtol=1e-6)
    (again,) = read_episodes(dataset)
    np.testing.assert_allclose(again.action, episode.action, atol=1e-7)


def test_more_episodes_than_are_read_at_once_keep_their_order(root):
    episodes = [
        Episode.from_arrays(np.full((3, 1), i), np.zeros((2, 1)), np.array([i, 0]), terminated=False)
        for i in range(120)
    ]
    write_dataset("many-v0", iter(episodes), "t", description="for a test")
    assert [episode.reward[0, 0] for episode in read_episodes(minari.load_dataset("many-v0"))] == list(range(120))


def test_domains_of_tasks():
    found = [domain_of(task) for task in ("Hopper-v5", "cheetah_run", "AntMaze_UMaze-v4", "my_robot")]
    assert found == ["Hopper", "cheetah", "AntMaze_UMaze", "my_robot"]


def test_observations_are_flattened_as_gymnasium_does():
    box = gymnasium.spaces.Box(-1, 1, (2, 3))
    pair = gymnasium.spaces.Tuple([box, gymnasium.spaces.Box(0, 255, (2,), np.uint8)])
    space = gymnasium.spaces.Dict({"z": box, "a": pair, "m": gymnasium.spaces.Dict({"x": box})})
    space.seed(0)
    steps = [space.sample() for _ in range(3)]
    stack = gymnasium.vector.utils.create_empty_array(space, n=3)
    joined = gymnasium.vector.utils.concatenate(space, steps, stack)
    expected = np.stack([gymnasium.spaces.flatten(space, step) for step in steps])
    np.testing.assert_array_equal(flatten_observations(space, joined), expected.astype(np.float32))


def test_names_and_data_that_minari_refuses_are_named(root):
    with pytest.raises(UserError, match="bad id: not a name for a Minari data set"):
        write_dataset("bad id", [], "t", description="")
    with pytest.raises(UserError, match="no episodes to write x-v0 from"):
        write_dataset("x-v0", [], "t", description="")


def test_a_failed_export_leaves_nothing(root):
    def episodes():
        yield make_episode(widths=(2, 1, 2, 0))
        raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        write_dataset("half/x-v0", episodes(), "t", description="")
    assert not list(root.rglob("*x-v0*"))


def test_without_minari_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'ringrl\[minari\]'"):
        open_dataset("hopper/a-v0")
