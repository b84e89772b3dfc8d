"""What a store is built from, and what need not be said."""

import numpy as np
import pytest

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.store.builder import build, chunk_rows
from ringrl.store.episode_store import DataSource, open_store


def make_episode(seed: int, tasks: int = 1) -> Episode:
    rng = np.random.default_rng(seed)
    observation, action, reward = rng.normal(size=(5, 3)), rng.uniform(-1, 1, (4, 2)), rng.random((4, tasks))
    return Episode.from_arrays(observation, action, reward, terminated=False)


def test_episodes_alone_are_of_one_source_and_their_tasks_are_named_after_the_domain(tmp_path):
    episodes = [make_episode(seed) for seed in range(3)]
    store = open_store(build(tmp_path / "one", iter(episodes), domain="rig"))
    assert (store.tasks, store.source.tolist(), store.dims) == (("rig",), [0, 0, 0], (3, 2, 1, 0))
    assert store.sources == (DataSource("rig", "rig", episodes=3, first=0, last=2),)
    np.testing.assert_array_equal(store.episode(2, "rig").action, episodes[2].action)
    np.testing.assert_array_equal(store.returns("rig"), [episode.returns[0] for episode in episodes])
    several = open_store(build(tmp_path / "two", [make_episode(0, tasks=2)], domain="rig"))
    assert several.tasks == ("rig_0", "rig_1")


def test_pairs_name_their_source_and_may_be_mixed_with_episodes_alone(tmp_path):
    sources = [DataSource("a", "a"), DataSource("b", "b")]
    given = [make_episode(0), (make_episode(1), 1), (make_episode(2), 0)]
    store = open_store(build(tmp_path / "s", given, domain="rig", tasks=["rig_run"], sources=sources))
    assert (store.source.tolist(), store.tasks) == ([0, 1, 0], ("rig_run",))
    with pytest.raises(ValueError, match="episode 0 is of source 2, but there are 2"):
        build(tmp_path / "t", [(make_episode(0), 2)], domain="rig", sources=sources)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_episodes_last_row_is_its_last_observation_and_zeros(tmp_path):
    episode, other = make_episode(0), make_episode(1)
    store = open_store(build(tmp_path / "s", [episode, other], domain="rig"))
    rows = store._arrays.whole("transition")
    np.testing.assert_array_equal(rows[4], [*episode.observation[4], 0, 0, 0])
    np.testing.assert_array_equal(rows[5:9, 3:5], other.action)
    assert store._arrays.whole("reward/rig")[[4, 9]].tolist() == [0, 0]


def test_a_later_episode_must_have_the_tasks_of_the_first(tmp_path):
    with pytest.raises(UserError, match="episode 1 has widths .*reward 2.*expected .*reward 1"):
        build(tmp_path / "s", [make_episode(0), make_episode(0, tasks=2)], domain="rig")


def test_given_returns_are_stored_as_they_are_and_must_be_of_every_task_and_episode(tmp_path):
    given = np.array([0.1, 0.2])
    episodes = [make_episode(0), make_episode(1)]
    store = open_store(build(tmp_path / "s", episodes, domain="rig", returns={"rig": given}))
    np.testing.assert_array_equal(store.returns("rig"), given)
    for wrong in ({"rig": given[:1]}, {"other": given}, {}):
        with pytest.raises(ValueError, match="returns have shapes"):
            build(tmp_path / "t", episodes, domain="rig", returns=wrong)


def test_a_chunk_is_an_episode_unless_that_is_short_or_long():
    # One episode of the suite, of jaco, of 100 steps (three of them), of 10,000.
    assert [chunk_rows(n) for n in (1001, 251, 101, 10_001)] == [1001, 251, 303, 4096]
