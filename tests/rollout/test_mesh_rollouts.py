"""A context that is spread over a mesh, by one process or by several: the returns of one device."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.trained_agent import load_agent
from ringrl.training.loop import run_training
from ringrl.training.mesh import rollout_mesh
from tests.builders import limit_evaluation

LIMIT = 22  # environment steps of an episode: 6 agent steps of up to 4


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    with pytest.MonkeyPatch.context() as patch:
        limit_evaluation(patch, LIMIT)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A trained run whose actions are drawn, and whose context of three trials becomes full."""
    agent = {"name": "agentic_transformer", "trajectories": 2, "head": "gaussian", "sample": True}
    config = tiny_config(agent, training={"steps": 1}, evaluation={"trials": 4, "envs": 4, "context": 90})
    path = tmp_path_factory.mktemp("mesh") / "run"
    run_training(config, path)
    return path


def returns(table: Path) -> list[tuple[int, int, float]]:
    with table.open() as file:
        return sorted((int(row["env"]), int(row["trial"]), float(row["return"])) for row in csv.DictReader(file))


@pytest.fixture(scope="module")
def alone(run) -> list[tuple[int, int, float]]:
    return returns(evaluate(run, reference=False))


@pytest.mark.parametrize("mesh", [{"seq": 4}, {"seq": 2, "data": 2}, {"tensor": 2, "seq": 2}], ids=str)
def test_a_mesh_gives_the_returns_of_one_device(run, alone, mesh):
    spread = returns(evaluate(run, reference=False, mesh=mesh))
    assert [row[:2] for row in spread] == [row[:2] for row in alone]
    np.testing.assert_allclose([row[2] for row in spread], [row[2] for row in alone], rtol=1e-5)


@pytest.mark.parametrize("mesh", [{"seq": 2}, {"seq": 4}], ids=str)
def test_a_session_on_a_ring_acts_as_on_one_device(run, mesh):
    sessions = [load_agent(run, mesh=each).start(trial_steps=4) for each in (None, mesh)]
    rng = np.random.default_rng(0)
    for _ in range(3):
        for session in sessions:
            session.new_trial()
        for step in range(4):
            observation = rng.normal(size=5).astype(np.float32)
            one, other = (session.act(observation) for session in sessions)
            np.testing.assert_allclose(one, other, atol=1e-5)
            for session in sessions:
                session.observe(1.0, step == 3)


def test_which_mesh_is_taken(tiny_config):
    config = tiny_config({"name": "behavior_cloning"}, mesh={"seq": 8}, training={"row_steps": 32})
    assert dict(rollout_mesh(config).shape)["seq"] == 8  # the run's, for there are 8 devices
    assert rollout_mesh(config.model_copy(update={"mesh": type(config.mesh)(seq=16)})) is None

    def given(**mesh):
        return parse_config(config.model_dump() | {"evaluation": {"mesh": mesh}}, "here")

    assert dict(rollout_mesh(given(seq=2)).shape)["seq"] == 2
    with pytest.raises(UserError, match="needs 16 devices, here are 8"):
        rollout_mesh(given(seq=16))
    with pytest.raises(UserError, match="--mesh tensor=4: does not divide model.kv_heads 2"):
        rollout_mesh(given(tensor=4))


SHORTER = """
import sys
from functools import partial
from ringrl import envs
from ringrl.cli import entry
from ringrl.rollout import shared_envs

def short_groups(*arguments, workers, trials, **options):
    return envs.make_groups(*arguments, time_limit={limit}, workers=0, **options)

shared_envs.make_groups = short_groups
shared_envs.make_env = partial(envs.make_env, time_limit={limit})
entry.main()
"""


def test_two_processes_give_the_returns_of_one(run, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = tmp_path / "shorter.py"
    script.write_text(SHORTER.format(limit=LIMIT))
    command = [sys.executable, script, "evaluate", run, "--no-reference", "--mesh", "seq=2", "data=2"]
    started = [
        subprocess.Popen(
            [*map(str, command), "--coordinator", address, "--processes", "2", "--process", str(process)],
            env=os.environ | {"RINGRL_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    printed = [process.communicate(timeout=200) for process in started]
    for process, (out, err) in zip(started, printed, strict=True):
        assert process.returncode == 0, out + err
    assert ["returns:" in out for out, _ in printed] == [True, False]
    spread = returns(run / "evaluation" / "returns.csv")
    np.testing.assert_allclose([row[2] for row in spread], [row[2] for row in alone], rtol=1e-5)
