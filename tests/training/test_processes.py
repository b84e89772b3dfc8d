"""Several real processes on this machine: the same run however it is divided, and all end when one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ringrl.config import dump_config
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.store.episode_store import DataSource, build
from ringrl.training import processes
from ringrl.training.mesh import _within

STEPS, EVERY, TRAJECTORIES, LENGTH = 4, 2, 32, 4
AGENT = {"name": "agentic_transformer", "fused": True, "trajectories": TRAJECTORIES}

# `ringrl` with a count of what the loader reads of the store: bytes a process, in FOLDER/PROCESS.json.
COUNTING = """
import json, os, sys
from types import SimpleNamespace
from jax._src import compiler
from ringrl import cli
from ringrl.training import training_data

# JAX lets process 0 alone write to the compile cache, though each process has programs of its own; here all of them do.
compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0, client=None))

class Counting:
    def __init__(self, store):
        self.lengths, self.returns, self.store, self.bytes = store.lengths, store.returns, store, 0
    def read_many(self, spans, task):
        steps = self.store.read_many(spans, task)
        self.bytes += sum(x.observation.nbytes + x.action.nbytes + x.reward.nbytes for x in steps)
        return steps

made, readers = training_data.make_loader, []
def make_loader(store, *arguments, **options):
    readers.append(Counting(store))
    return made(readers[-1], *arguments, **options)

training_data.make_loader = make_loader
folder = sys.argv.pop(1)
cli.main()
number = sys.argv[sys.argv.index("--process") + 1] if "--process" in sys.argv else "0"
with open(os.path.join(folder, f"{number}.json"), "w") as file:
    json.dump(readers[-1].bytes, file)
"""


TRACKER = """
class Lines:
    def begin(self, run, config, step):
        self.file = run / "lines"
    def log(self, step, values):
        with self.file.open("a") as file:
            file.write(f"{step}\\n")
    def end(self, status):
        self.log(status, {})
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """64 episodes of 4 steps, of random numbers."""
    rng = np.random.default_rng(0)

    def episodes():
        for _ in range(64):
            observation = rng.normal(size=(LENGTH + 1, 5)).astype(np.float32)
            action, reward = (rng.uniform(-1, 1, (LENGTH + 1, 1)).astype(np.float32) for _ in range(2))
            ones = np.ones(LENGTH, np.float32)
            yield Episode(observation, action[1:], reward[1:], ones, np.zeros((LENGTH + 1, 4))), 0

    what = {"domain": "cartpole", "tasks": ("cartpole_balance",), "provenance": {}}
    return build(tmp_path_factory.mktemp("random") / "store", episodes(), sources=[DataSource("one", "one")], **what)


@pytest.fixture(scope="module")
def ringrl(tmp_path_factory):
    """A function (arguments, processes, devices of each) -> the started processes."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "counting.py"
    script.write_text(COUNTING)
    (folder / "lines_tracker.py").write_text(TRACKER)
    started: list[subprocess.Popen] = []

    def start(count: int, devices: int, *arguments: object, where: tuple[Path | None, ...] = ()):
        joining = [[]]
        if count > 1:
            address = f"127.0.0.1:{free_port()}"
            joining = [["--coordinator", address, "--processes", count, "--process", i] for i in range(count)]
        env = os.environ | {"RINGRL_CPU_DEVICES": str(devices)}
        group = [
            subprocess.Popen(
                [sys.executable, *map(str, (script, folder, "train", *arguments, *join))],
                env=env,
                cwd=where[i] if where else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i, join in enumerate(joining)
        ]
        started.extend(group)
        return group

    yield start, folder
    for process in started:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(group: list[subprocess.Popen]) -> list[str]:
    """Wait for processes that must succeed; what each printed, but for what the Gloo library prints."""
    printed = [process.communicate(timeout=200) for process in group]
    for process, (out, err) in zip(group, printed, strict=True):
        assert process.returncode == 0, out + err
    return ["\n".join(line for line in out.splitlines() if "peer ranks" not in line) for out, _ in printed]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("counts", [(1, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)], ids=str)
def test_a_run_is_the_same_however_many_processes_share_it(counts, tiny_config, store, ringrl, tmp_path):
    start, folder = ringrl
    config = tiny_config(
        AGENT,
        data={"store": str(store), "action_repeat": 1, "prefetch": 0},
        model={"max_trials": TRAJECTORIES, "remat": "none"},
        mesh={"seq": 4},
        training={"steps": STEPS, "batch": 1, "row_steps": TRAJECTORIES * LENGTH, "checkpoint_every": EVERY,
                  "trackers": ["lines_tracker:Lines"]},
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(dump_config(config))
    runs, read = {}, {}
    for count in counts:
        runs[count] = tmp_path / f"run{count}"
        printed = finish(start(count, 4 // count, tmp_path / "c.yaml", "--out", runs[count]))
        assert f"step {STEPS}/{STEPS}" in printed[0] and not any(printed[1:])  # one process speaks
        assert (runs[count] / "lines").read_text().split() == [*map(str, range(1, STEPS + 1)), "finished"]  # once
        read[count] = [json.loads((folder / f"{i}.json").read_text()) for i in range(count)]
    for count in counts[1:]:
        np.testing.assert_allclose(losses(runs[count]), losses(runs[1]), rtol=1e-5)
        # Of a row's trajectories each process reads those that its steps are of, and at most one before each of the
        # two runs of its steps, for the previous action and reward.
        share = np.array(read[count]) / read[1][0]
        assert (share >= 1 / count).all() and (share <= 1 / count + 2 / TRAJECTORIES).all()
    # Begun by the most processes, interrupted, and finished by fewer.
    for count in counts[:-1]:
        run = shutil.copytree(runs[counts[-1]], tmp_path / f"resumed{count}")
        shutil.rmtree(run / "checkpoints" / str(STEPS))
        finish(start(count, 4 // count, "--resume", run))
        np.testing.assert_allclose(losses(run), losses(runs[1]), rtol=1e-5)


def endless(tiny_config, tmp_path: Path, **data: object) -> Path:
    """A configuration that trains for ever on two devices."""
    config = tiny_config(
        {"name": "decision_transformer", "fused": True, "window": 4},
        data=data,
        model={"remat": "none"},
        mesh={"data": 2},
        training={"steps": 10**6, "row_steps": 4, "checkpoint_every": 10},
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    return tmp_path / "c.yaml"


@pytest.mark.parametrize(
    "victim, how, timeout, message",
    [
        (1, signal.SIGKILL, 60, "process 1 is gone"),
        pytest.param(0, signal.SIGKILL, 60, "process 0 is gone", marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, 5, "process 1 has been silent for 5 s", marks=pytest.mark.slow),
    ],
    ids=["killed", "first killed", "stopped"],
)
def test_a_process_that_dies_ends_the_others(victim, how, timeout, message, tiny_config, ringrl, tmp_path):
    start, _ = ringrl
    run = tmp_path / "run"
    flag = "--heartbeat-timeout" if victim else "--silence"  # its former name
    group = start(2, 1, endless(tiny_config, tmp_path), "--out", run, flag, timeout)
    deadline = time.monotonic() + 100
    while not list((run / "checkpoints").glob("[0-9]*")) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in group), [process.communicate(timeout=60) for process in group]
        time.sleep(0.05)
    group[victim].send_signal(how)
    began = time.monotonic()
    _, complaint = group[1 - victim].communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert group[1 - victim].returncode == 1
    lines = [line for line in complaint.splitlines() if line.startswith("ringrl: ")]
    assert len(lines) == 1 and lines[0].startswith(f"ringrl: {message}") and "--resume" in lines[0]
    # Where process 0 dies, JAX's own runtime notices at the same moment, and may have printed something by then.
    assert victim == 0 or complaint == f"{lines[0]}\n"


def test_what_one_process_cannot_do_ends_all_with_its_reason(tiny_config, tiny_store, ringrl, tmp_path):
    start, _ = ringrl
    shutil.copytree(tiny_store, tmp_path / "here" / "store")
    config = endless(tiny_config, tmp_path, store="store")
    group = start(2, 1, config, "--out", tmp_path / "run", where=(tmp_path / "here", tmp_path))
    complaints = [process.communicate(timeout=60)[1] for process in group]
    reason = "store does not exist; build one with `ringrl data build_store`\n"
    assert complaints == [f"ringrl: process 1: {reason}", f"ringrl: {reason}"]
    assert [process.returncode for process in group] == [1, 2]
    assert not (tmp_path / "run").exists()


def grid(*shape: int, devices: int) -> np.ndarray:
    """The processes of a mesh whose devices are taken in order, `devices` from each process."""
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape) // devices


@pytest.mark.parametrize(
    "owners, expected",
    [
        (grid(1, 1, 1, 4, 1, devices=2), [("1", "1100"), ("1", "0011")]),  # a ring over processes
        (grid(2, 2, 1, 1, 1, devices=2), [("1100", "1"), ("0011", "1")]),
        (grid(2, 1, 1, 2, 2, devices=2), [("10", "1100"), ("10", "0011"), ("01", "1100"), ("01", "0011")]),
        (grid(1, 1, 2, 2, 1, devices=2), [("1", "11"), ("1", "11")]),  # both need all, for their heads
        (grid(2, 1, 1, 2, 1, devices=4), [("11", "11")]),
        (np.array([0, 1, 1, 0], np.int64).reshape(1, 1, 1, 4, 1), [("1", "1001"), ("1", "0110")]),  # hosts on a torus
        (grid(1, 3, 1, 2, 1, devices=3), [None, None]),  # one row and a half
    ],
)
def test_the_shard_of_a_process(owners, expected):
    for me, parts in enumerate(expected):
        found = processes.find_parts(owners, me)
        digits = found and tuple("".join(str(int(x)) for x in part) for part in found)
        assert digits == parts


def test_a_device_finds_its_run_among_the_pieces():
    stored = np.array([2, 3, 8, 9, 10, 11])
    for part in (slice(2, 4), slice(8, 10), slice(10, 12), slice(8, 12)):
        np.testing.assert_array_equal(stored[_within(stored, part)], np.arange(12)[part])
    everything = np.arange(4)
    assert _within(everything, slice(None)) == slice(0, 4)


@pytest.mark.parametrize(
    "environment, launcher",
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, None),  # a batch script, outside srun
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell of srun's
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}, "Slurm"),
        ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "x"}, None),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": ""}, "TPU pod"),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_launchers_are_found_by_their_environment_variables(environment, launcher, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "KUBERNETES", "JOB_", "TPU_ML")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._launcher() == launcher


@pytest.mark.parametrize(
    "given, message",
    [
        ((None, 2, 0), "go together"),
        (("host", 2, 0), "--coordinator host: write it as HOST:PORT"),
        (("host:1", 2, 2), "--process 2: give a number from 0 to 1"),
    ],
)
def test_incomplete_flags_are_refused(given, message):
    with pytest.raises(UserError, match=message), processes.joined(*given):
        pass


def test_one_process_joins_nobody():
    with processes.joined(processes=1):
        assert processes.is_first()
        assert processes.from_first("anything", lambda: 3) == 3
