"""Whole runs: the same losses on every mesh, killed and resumed, restored elsewhere, and stopped where they must."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import jax
import numpy as np
import pytest

from ringrl.agent import make_agent, make_decoder
from ringrl.config import dump_config
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.rollout.repetitions import repeat
from ringrl.run import RunDirectory
from ringrl.store.episode_store import DataSource, build
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.loop import run_training
from ringrl.training.mesh import make_mesh
from ringrl.training.processes import local_shard
from ringrl.training.start import train
from ringrl.training.state import init_state, split_model
from ringrl.training.trained_model import load_model
from tests.builders import limit_evaluation, unseal

SIZES = {"observation": 5, "action": 1}
INTERLEAVED = {"name": "agentic_transformer", "trajectories": 2}
FUSED = INTERLEAVED | {"fused": True}


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run) -> list[float]:
    return [line["loss"] for line in metrics(run)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_config):
    """A function (agent, mesh, accumulation) -> (config, finished run of five steps); each is trained once."""

    @cache
    def run(fused: bool, mesh: tuple = (), accumulation: int = 1):
        config = tiny_config(
            FUSED if fused else INTERLEAVED,
            mesh=dict(mesh),
            optimizer={"accumulation": accumulation},
            model={
                "feed_forward_block": 8,
                "remat": "none",
            },  # recomputing takes long to compile; test_transformer has it
        )
        path = tmp_path_factory.mktemp("trained") / "run"
        run_training(config, path)
        return config, path

    return run


@pytest.mark.parametrize(
    "fused, mesh, accumulation",
    [
        pytest.param(False, {"seq": 4}, 1, marks=pytest.mark.slow),
        (True, {"seq": 4}, 1),
        pytest.param(True, {"seq": 2, "heads": 2}, 1, marks=pytest.mark.slow),
        pytest.param(False, {"seq": 4, "exchange": "all_gather"}, 1, marks=pytest.mark.slow),
        (True, {"seq": 2, "layout": "contiguous", "tensor": 2, "fsdp": 2}, 1),
        (False, {"seq": 2, "layout": "striped", "stripe": 3}, 1),
        pytest.param(True, {"data": 2, "fsdp": 2}, 1, marks=pytest.mark.slow),
        (True, {"data": 2}, 2),
    ],
    ids=[
        "interleaved ring",
        "fused ring",
        "hybrid",
        "gathered",
        "ring, tensor, fsdp",
        "stripes of whole steps",
        "data, fsdp",
        "data, accumulated",
    ],
)
def test_the_same_losses_on_every_mesh(fused, mesh, accumulation, trained):
    expected = losses(trained(fused)[1])
    assert len(expected) == 5 and expected[0] != pytest.approx(expected[-1], rel=1e-3)  # there is something to agree on
    np.testing.assert_allclose(losses(trained(fused, tuple(mesh.items()), accumulation)[1]), expected, rtol=1e-4)


def test_a_checkpoint_of_a_ring_is_restored_on_one_device(trained, tiny_config, tmp_path):
    config, ring_run = trained(True, (("seq", 4),))
    run = shutil.copytree(ring_run, tmp_path / "run")
    _, like = init_state(config, make_decoder(config.agent), SIZES, make_mesh(config.mesh))
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 5
        ring, about = checkpoints.restore(like)
    assert about["mesh"]["seq"] == 4 and about["loader"] == {"seed": 0, "next_batch": 5}
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(ring)} == {4}
    model, step = load_model(run, config, SIZES)
    _, params = split_model(model)
    assert step == 5 and {len(x.sharding.device_set) for x in jax.tree.leaves(params)} == {1}
    jax.tree.map(np.testing.assert_array_equal, params, ring.params)
    # A run that began on a ring continues on one device.
    run_training(tiny_config(FUSED, training={"steps": 7}, model={"feed_forward_block": 8, "remat": "none"}), run)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6, 7]


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ringrl.cli", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_to_the_same_end(tiny_config, tmp_path):
    config = tiny_config(
        FUSED, training={"steps": 400, "checkpoint_every": 25, "log_every": 10}, model={"remat": "none"}
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start(str(tmp_path / "c.yaml"), "--out", str(killed)) as process:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "50").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    done = max(int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit())
    assert 50 <= done < 400
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # what a kill may leave of a line
    runs = [start(str(tmp_path / "c.yaml"), "--out", str(whole)), start("--resume", str(killed))]
    for process in runs:
        printed, complaints = process.communicate(timeout=240)
        assert process.returncode == 0 and complaints == ""
        assert re.search(r"step 400/400, loss \d.*tokens/s, ETA 0:00:00\nrun: ", printed)
    assert [line["step"] for line in metrics(killed)] == list(range(10, 401, 10))
    np.testing.assert_allclose(losses(killed), losses(whole), rtol=1e-6)
    assert metrics(killed)[-1]["tokens"] == metrics(whole)[-1]["tokens"] == 400 * 4 * 24
    kept = {path.name for path in (killed / "checkpoints").iterdir()}
    assert kept == {path.name for path in (whole / "checkpoints").iterdir()} >= {"375", "400"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """A run of four steps, and its configuration."""
    config = tiny_config(
        {"name": "decision_transformer", "fused": True, "window": 4},
        training={"steps": 4, "batch": 4, "row_steps": 4, "log_every": 2, "checkpoint_every": 2},
        model={"remat": "none"},
    )
    run = tmp_path_factory.mktemp("finished") / "run"
    run_training(config, run)
    return run, config


def test_a_run_directory_has_all_that_was_promised(finished):
    run, _ = finished
    lines = metrics(run)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        speed = {"tokens", "tokens_per_s", "mfu", "loader_wait"}
        assert {"loss", "grad_norm", "learning_rate", "padding"} | speed <= set(line)
        assert line["tokens"] == line["step"] * 4 * 4 and line["tokens_per_s"] > 0
        assert 0 < line["mfu"] < 1 and 0 <= line["loader_wait"] <= 1
    assert list((run / "tensorboard").glob("events*"))
    assert RunDirectory(run).settings()["model"]["rope_base"] == 10_000
    card = json.loads((run / "dataset.json").read_text())
    assert card["episodes"] == 8 == len(card["returns"]) and card["sizes"] == SIZES


def test_padding_is_the_share_of_empty_positions_of_the_steps_own_batch(trained):
    config, run = trained(True)
    source = make_agent(config.agent).make_trainer(config).data
    source.prepare(run)
    t = config.training
    batches = source.batches(0, local_shard(make_mesh(config.mesh), t.batch, t.row_steps))
    padding = [float(np.mean(next(batches)["segment_ids"] == 0)) for _ in range(5)]
    assert 0 < min(padding) < max(padding) < 1
    logged = [(line["step"], line["padding"]) for line in metrics(run)]
    assert logged == [(step, pytest.approx(padding[step - 1], rel=1e-6)) for step, _ in logged] and logged


def test_resuming_a_finished_run_changes_nothing(finished):
    run, _ = finished
    before = (run / "metrics.jsonl").read_text(), sorted((run / "checkpoints").iterdir())
    train(resume=run)
    assert ((run / "metrics.jsonl").read_text(), sorted((run / "checkpoints").iterdir())) == before


def test_a_store_that_is_not_what_it_was_is_refused(finished, tmp_path):
    run, config = finished
    zeros = [np.zeros((rows, width), np.float32) for rows, width in ((9, 7), (8, 2), (8, 1))]
    wide = Episode(*zeros, np.ones(8, np.float32), np.zeros((9, 4)))
    what = {"domain": "cartpole", "tasks": ("cartpole_balance",), "provenance": {}}
    other = build(tmp_path / "other", [(wide, 0)], sources=[DataSource("one", "one")], **what)
    moved = config.model_copy(update={"data": config.data.model_copy(update={"store": str(other)})})
    changed = r"\(episodes.*sizes.*content changed\)"
    with pytest.raises(UserError, match=f"other: not the data that .*run began with {changed}"):
        run_training(moved, run)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"data": {"task": "cartpole_swing"}}, "no rewards of 'cartpole_swing'"),
        ({"data": {"store": "nowhere"}}, "nowhere does not exist"),
        ({"agent": INTERLEAVED | {"trajectories": 9}}, "9 trajectories cannot be drawn from 8 episodes"),
        ({"training": {"row_steps": 8}}, "a row of 8 steps is too short"),
        ({"mesh": {"data": 4, "fsdp": 4}, "training": {"batch": 16}}, "needs 16 devices, here are 8"),
    ],
    ids=["task", "store", "chain", "row", "mesh"],
)
def test_what_does_not_fit_leaves_no_run_behind(sections, message, tiny_config, tmp_path):
    config = tiny_config(sections.pop("agent", FUSED), **sections)
    with pytest.raises(UserError, match=message) as caught:
        run_training(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_evaluation_reads_the_run_and_leaves_its_checkpoints_alone(finished, monkeypatch, tmp_path):
    run, config = finished
    limit_evaluation(monkeypatch, 22)
    before = sorted((run / "checkpoints").iterdir())
    path = evaluate(run, trials=2, target=12.5)
    header, *rows = path.read_text().splitlines()
    assert header == "agent,task,seed,env,trial,return,length,target_return,demonstrations,explored"
    assert len(rows) == 2 * 2 * 2 and sorted((run / "checkpoints").iterdir()) == before
    ours = [row.split(",") for row in rows if row.startswith("decision_transformer")]
    theirs = [row.split(",") for row in rows if row.startswith("random")]
    assert {row[7] for row in ours} == {"12.5"} and {row[7] for row in theirs} == {""}
    assert {(row[3], row[4]) for row in ours} == {("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")}
    assert {row[6] for row in ours + theirs} == {"22"}
    again = evaluate(run, trials=2, target=12.5, reference=False).read_text()
    assert again.splitlines()[1:] == [",".join(row) for row in ours]  # the same seeds, the same returns
    about = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert (about["trials"], about["target"], about["checkpoint_step"]) == (2, 12.5, 4)
    assert about["notes"][0].startswith(
        "a trial of cartpole_balance has 6 agent steps, and the longest episode of the d"
    )
    assert about["notes"][1].startswith("target return 12.5: far outside the data's, 32.5") and len(about["notes"]) == 2
    repeat(run, targets=[1e6], trials=1)
    about = json.loads((run / "evaluation" / "targets.json").read_text())
    assert [note.partition(":")[0] for note in about["notes"][1:]] == ["target return 1e+06"]
    with pytest.raises(UserError, match="`trials`"):
        evaluate(run, trials=0)
    with pytest.raises(UserError, match="not a run directory"):
        evaluate(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    for name in ("dataset.json", "run.json", "agent.py", "SHA256SUMS"):
        shutil.copy(run / name, tmp_path)
    unseal(tmp_path)
    with pytest.raises(UserError, match="train the run first"):
        evaluate(tmp_path)
