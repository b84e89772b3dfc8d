"""A run that goes on: on other devices, for more steps, with the data that it began with, or not at all."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.store.episode_store import build, open_store
from ringrl.training.start import train

TASK = "cartpole_balance"


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in lines(run)]


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(
        {"name": "agentic_transformer", "trajectories": 2, "fused": True},
        training={"steps": 6, "checkpoint_every": 3},
        model={"remat": "none"},
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return train(config, out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def half(finished, tmp_path):
    """The run as it was after three of its six steps."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    return run


@pytest.mark.parametrize("mesh", [("mesh.seq=4",), ("mesh.data=2", "mesh.fsdp=2")], ids=["ring", "data, fsdp"])
def test_it_goes_on_on_other_devices_with_the_same_losses_and_back(mesh, finished, half, tmp_path):
    train(None, *mesh, resume=half)
    np.testing.assert_allclose(losses(half), losses(finished), rtol=1e-4)
    assert losses(half)[:3] == losses(finished)[:3] and losses(half)[3:] != losses(finished)[3:]  # other sums
    about = json.loads((half / "checkpoints" / "6" / "about" / "metadata").read_text())
    assert {f"mesh.{axis}={size}" for axis, size in about["mesh"].items() if size > 1} == set(mesh)
    shutil.rmtree(half / "checkpoints" / "6")
    train(None, *(f"{setting.partition('=')[0]}=1" for setting in mesh), resume=half)
    assert losses(half) == losses(finished)


def test_more_steps_begin_with_the_rate_that_there_was(half, finished, capsys):
    train(None, "training.steps=9", resume=half)
    rates = [line["learning_rate"] for line in lines(half)]
    before = [line["learning_rate"] for line in lines(finished)]
    assert rates[:4] == pytest.approx(before[:4], rel=1e-6) and len(rates) == 9
    assert rates[3:] == sorted(rates[3:], reverse=True)
    said = f"{half}: the learning rate is {before[3]:.3g} at step 3, and falls to 0.0001 at step 9"
    assert said in capsys.readouterr().out
    train(resume=half)
    assert RunDirectory(half).config().training.steps == 9


@pytest.mark.parametrize(
    "change, message",
    [
        ("training.steps=2", "has done 3 steps, so training.steps=2 is behind it; give 3 or more"),
        ("agent.head=gaussian", "began with agent.head=tanh_mse, not gaussian; leave it out, or train a new run"),
        ("agent.fused=false", "began with agent.fused=True, not False"),
        ("model.layers=2", "began with model.layers=1, not 2"),
        ("model.preset=tiny", "began with model.preset=None, not tiny"),
        ("optimizer.legs=[{begin: 0, rate: 1, peak: 1, warmup: 0, end: 1, steps: 3}]", "began with optimizer.legs="),
        ("mesh.seq=12", "needs 12 devices, here are 8"),
        ("mesh.seq=5", "training.row_steps 24 must be a multiple of 10 for mesh.seq=5"),
    ],
)
def test_what_cannot_change_is_refused_in_one_line_and_nothing_is_written(change, message, half):
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as refused:
        train(None, change, resume=half)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


def rebuild(store, out, tasks, observed=0.0):
    """The store again with some of its tasks; `observed` is added to one number that was observed."""

    def episodes():
        for index in range(store.episodes):
            one, *more = (store.episode(index, task) for task in tasks)
            reward = np.concatenate([one.reward, *(other.reward for other in more)], axis=1)
            observation = one.observation.copy()
            observation[2, 1] += observed if index == 5 else 0
            yield replace(one, observation=observation, reward=reward), int(store.source[index])

    what = {"domain": store.domain, "sources": store.sources, "provenance": store.provenance}
    return build(out, episodes(), tasks=tasks, **what)


def test_the_numbers_that_it_began_with_and_no_others(half, config, tmp_path):
    store = open_store(config.data.store)
    # Without a task that it does not learn, a store has other files and the same numbers.
    train(None, f"data.store={rebuild(store, tmp_path / 'fewer', [TASK])}", resume=half)
    other = rebuild(store, tmp_path / "other", store.tasks, observed=1e-3)
    with pytest.raises(UserError, match=rf"other: not the data that {half} began with \(content changed\); give them"):
        train(None, f"data.store={other}", resume=half)
    # Of a store or a run of an earlier ringrl the numbers are not known, and the rest is compared.
    about = json.loads((other / "store.json").read_text())
    del about["content"], about["manifest"]
    (other / "store.json").write_text(json.dumps(about))
    (other / "SHA256SUMS").unlink()
    train(None, f"data.store={other}", resume=half)
