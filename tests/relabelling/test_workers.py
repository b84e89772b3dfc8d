import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ringrl import envs
from ringrl.errors import UserError
from ringrl.formats.exorl import read_episode, write_episode
from ringrl.relabelling.rewards import Relabeler
from ringrl.relabelling.workers import Workers, parallel_map, relabel_files
from tests.builders import random_episode

TASKS = ("cartpole_balance", "cartpole_swingup")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Seven episodes of cartpole, 5 to 11 steps."""
    folder = tmp_path_factory.mktemp("buffer")
    env = envs.make_env("cartpole_swingup", seed=0)
    for index in range(7):
        write_episode(folder, index, random_episode(env, 5 + index, np.random.default_rng(index)))
    return sorted(folder.iterdir())


def assert_all_in_order(files, results):
    results = list(results)
    assert [file for file, _ in results] == files
    for file, episode in results:
        np.testing.assert_array_equal(episode.reward, Relabeler(TASKS)(read_episode(file)))


@pytest.mark.parametrize("jobs", [1, 2])
def test_files_come_in_order_with_their_rewards(files, jobs):
    assert_all_in_order(files, relabel_files(files, TASKS, workers=Workers(jobs)))


def test_a_dask_cluster_of_processes_does_the_same(files):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = Workers(backend="dask", address=cluster.scheduler_address)
        assert_all_in_order(files, relabel_files(files, TASKS, workers=workers))
        served = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.task_prefixes))
    assert served  # it was the cluster, not this process


@pytest.mark.slow
def test_a_dask_cluster_is_started_if_none_is_named(files):
    assert_all_in_order(files, relabel_files(files, TASKS, workers=Workers(2, "dask")))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_damaged_file_is_named_or_left_out(files, tmp_path, jobs):
    bad = tmp_path / "episode_000003_8.npz"
    bad.write_bytes(b"PK")
    mixed = [*files[:3], bad, *files[4:]]
    results = relabel_files(mixed, TASKS, workers=Workers(jobs))
    assert [next(results)[0] for _ in range(3)] == files[:3]
    with pytest.raises(UserError, match="episode_000003_8.npz: bad episode file"):
        next(results)
    damaged = []
    results = relabel_files(mixed, TASKS, workers=Workers(jobs), on_damaged=lambda *each: damaged.append(each))
    assert [file for file, _ in results] == [*files[:3], *files[4:]]
    assert [file for file, _ in damaged] == [bad] and "truncated" in damaged[0][1]


def test_tasks_that_do_not_fit_are_no_damage(files):
    results = relabel_files(files, ["cartpole_two_poles"], on_damaged=lambda *_: None)
    with pytest.raises(UserError, match="episode_000000_5.npz: cannot relabel with cartpole_two_poles"):
        list(results)


def test_workers_do_not_run_far_ahead_of_the_reader(tmp_path):
    names = [tmp_path / str(index) for index in range(40)]
    results = parallel_map(Path.touch, names, Workers(2), ahead=3)
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == 6
    list(results)
    assert len(list(tmp_path.iterdir())) == 40


def test_workers_start_without_jax():
    code = "import sys, ringrl.relabelling.relabelled_folder; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_cannot_work_is_said():
    with pytest.raises(UserError, match="-1 jobs"):
        Workers(-1)
    with pytest.raises(UserError, match="goes with --backend dask or ray"):
        Workers(address="tcp://10.0.0.1:8786")


def test_a_missing_backend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="ray is not installed: pip install 'ray'"):
        list(parallel_map(abs, [1], Workers(2, "ray"), ahead=1))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "foo://x:1", "tcp:/x", "inproc://x"])
def test_a_scheduler_that_is_not_there_is_said_at_once(address):
    pytest.importorskip("distributed")
    began = time.monotonic()
    with pytest.raises(UserError, match=f"no Dask scheduler answers at {address} ") as caught:
        list(parallel_map(abs, [1], Workers(backend="dask", address=address), ahead=1))
    assert "\n" not in str(caught.value) and time.monotonic() - began < 12


def test_few_files_are_not_worth_a_process(files, monkeypatch):
    monkeypatch.delattr("joblib.Parallel")
    assert_all_in_order(files, relabel_files(files, TASKS, workers=Workers(0)))
