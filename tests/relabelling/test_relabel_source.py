"""`ringrl.relabel`, as a program in Python calls it; the command line's tests are tests/data/test_relabel_step.py."""

import numpy as np
import pytest

from ringrl import envs
from ringrl.collect.record import record_episode
from ringrl.errors import UserError
from ringrl.formats.exorl import list_episodes, read_episode, write_episode
from ringrl.relabelling.relabel_source import relabel
from ringrl.relabelling.rewards import Relabeler


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two episodes of cartpole, under ExoRL's path."""
    path = tmp_path_factory.mktemp("data") / "cartpole" / "zeros"
    env = envs.make_env("cartpole_swingup", seed=0, action_repeat=20)
    for index in range(2):
        write_episode(path / "buffer", index, record_episode(env, lambda _: np.zeros(1, np.float32))[0])
    return path


def test_what_it_returns_is_what_the_folder_contains(source, tmp_path):
    tasks = ["cartpole_balance", "cartpole_swingup_sparse"]
    found = relabel(str(source), str(tmp_path / "out"), tasks=tasks, jobs=1)
    assert (found.folder, found.tasks, found.episodes) == (tmp_path / "out", tuple(tasks), 2)
    assert found.made and found.skipped == ()
    for before, after in zip(list_episodes(source), list_episodes(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(read_episode(after).reward, Relabeler(tasks)(read_episode(before)))
    assert not relabel(source, tmp_path / "out", tasks=tasks, jobs=1).made


def test_tasks_of_another_domain_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="is of cartpole, the tasks of walker"):
        relabel(source, tmp_path / "out", tasks=["walker_run"])
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_left_out_with_its_reason(source, tmp_path):
    for path in list_episodes(source):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "episode_000002_5.npz").write_bytes(b"PK")
    options = {"tasks": ["cartpole_balance"], "domain": "cartpole", "jobs": 1}
    found = relabel(tmp_path, tmp_path / "out", **options, skip_bad=True)
    assert found.episodes == 2 and len(found.skipped) == 1 and "episode_000002_5.npz" in found.skipped[0]
