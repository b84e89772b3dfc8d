"""Worker processes: nothing depends on their number, none is left, and what goes wrong in one is said in a line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ringrl import envs
from ringrl.errors import UserError

COUNT = 5


def roll_out(workers, task="Hopper-v5", groups=2, steps=40):
    """All that comes out of a rollout in groups that are stepped in turn, in which episodes end at different times."""
    made = envs.make_groups(task, COUNT, groups, seed=3, action_repeat=2, time_limit=61, workers=workers)
    rows = [[group.reset()[0]] for group in made]
    rng = np.random.default_rng(0)
    for step in range(steps):
        actions = rng.uniform(-1, 1, (COUNT, made[0].action_space.shape[1])).astype(np.float32)
        for group, found in zip(made, rows, strict=True):
            if step:
                found += group.step_wait()
            group.step_async(actions[group.first :][: group.num_envs], restart=True)
    for group, found in zip(made, rows, strict=True):
        found += group.step_wait()
        group.close()
    columns = [[each["length"] if isinstance(each, dict) else each for each in found] for found in rows]
    return [np.concatenate(parts) for parts in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def pool():
    with envs.EnvPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def in_process():
    return roll_out(0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_no_bit(workers, in_process, pool):
    found = roll_out(pool if workers == 2 else workers)
    assert len(found) == len(in_process)
    for one, other in zip(found, in_process, strict=True):
        np.testing.assert_array_equal(one, other)
    ended = sum(int(each.sum()) for each in in_process if each.dtype == bool)
    assert ended > COUNT


def test_the_number_of_groups_changes_no_bit_either(in_process):
    for one, other in zip(roll_out(0, groups=1), in_process, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pool_serves_many_batches_and_outlives_them(pool):
    first, second = (envs.make_vector("cartpole_swingup", 3, seed=seed, workers=pool) for seed in (0, 1))
    started = [vector.reset()[0] for vector in (first, second)]
    assert not np.array_equal(*started)
    first.close()
    actions = np.zeros((3, 1), np.float32)
    assert second.step(actions)[4]["length"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(second.reset(seed=1)[0], started[1])
    second.close()
    assert not pool.closed


def test_the_expert_and_left_out_environments_are_the_same_in_workers(pool):
    here, there = (envs.make_vector("hidden_point_mass_goal", 3, seed=5, workers=workers) for workers in (0, pool))
    for vector in (here, there):
        vector.reset()
    actions = here.expert()
    np.testing.assert_array_equal(there.expert(), actions)
    for vector in (here, there):
        vector.step_async(actions, np.array([True, False, True]))
    for one, other in zip(here.step_wait(), there.step_wait(), strict=True):
        np.testing.assert_equal(one, other)
    with pytest.raises(UserError, match="cheetah_run has no expert"):
        envs.make_vector("cheetah_run", 2, workers=pool).expert()


def gone(pids):
    """Whether the processes end within some seconds."""
    for _ in range(200):
        if not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_closing_leaves_no_process():
    vector = envs.make_vector("cartpole_swingup", 2, workers=2)
    vector.reset()
    processes = [worker.process for worker in vector._pool.workers]
    vector.close()
    assert [process.poll() for process in processes] == [0, 0]
    with pytest.raises(UserError, match="have ended; make the environments anew"):
        vector.reset()
    vector.close()


def test_a_worker_that_dies_is_one_line_and_ends_the_others():
    vector = envs.make_vector("cartpole_swingup", 2, workers=2)
    vector.reset()
    processes = [worker.process for worker in vector._pool.workers]
    processes[1].send_signal(signal.SIGKILL)
    with pytest.raises(UserError, match="cartpole_swingup: a worker process was ended by SIGKILL") as refusal:
        for _ in range(3):
            vector.step(np.zeros((2, 1), np.float32))
    assert "\n" not in str(refusal.value) and all(process.poll() is not None for process in processes)
    vector.close()


# What a shell starts in the background ignores SIGINT, and so would its children.
ENDLESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from ringrl import envs
vector = envs.make_vector("cartpole_swingup", 2, workers=2)
vector.reset()
print(*(worker.process.pid for worker in vector._pool.workers), flush=True)
while True:
    vector.step(np.zeros((2, 1), np.float32))
    vector.reset()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_main_process_and_say_nothing(how):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", ENDLESS], **pipes) as main:
        pids = main.stdout.readline().split()
        assert len(pids) == 2
        os.killpg(main.pid, how)  # as a terminal does
        try:
            _, errors = main.communicate(timeout=60)
        finally:
            main.kill()
    assert gone(pids)
    assert errors.count("Traceback") == (how == signal.SIGINT), errors  # the main process's own


def test_workers_do_not_import_jax_and_need_no_guard_in_the_main_module(tmp_path):
    program = "import sys, ringrl.envs.env_worker; print([name for name in ('jax', 'flax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    (tmp_path / "main.py").write_text(ENDLESS.split("print")[0] + "print('once')\nvector.close()\n")
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n"


@pytest.mark.parametrize(
    "task, count, limit, used",
    [
        ("Pendulum-v1", 2, None, False),
        ("dog_run", 4, 9, False),
        ("dog_run", 1, None, False),
        ("dog_run", 4, None, True),
    ],
)
def test_workers_are_used_where_steps_take_longer_than_messages(monkeypatch, task, count, limit, used):
    monkeypatch.setattr("ringrl.envs.vector.cores", lambda: 2)
    groups = envs.make_groups(task, count, time_limit=limit)
    assert all(bool(group.envs) != used for group in groups)
    for group in groups:
        group.close()
