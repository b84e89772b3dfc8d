"""A language model from a file of token ids to a checkpoint, on a ring."""

import json

import numpy as np
import pytest

from ringrl.config import parse_config
from ringrl.errors import UserError
from ringrl.rollout.evaluate import evaluate
from ringrl.training.loop import run_training
from ringrl.training.start import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on counting to ten, over and over."""
    folder = tmp_path_factory.mktemp("text")
    np.save(folder / "text.npy", np.arange(3000, dtype=np.uint16) % 10)
    config = parse_config(
        {
            "data": {"store": str(folder / "text.npy"), "task": "next_token"},
            "agent": {"name": "language_model", "bins": 12},
            "model": {"layers": 1, "width": 32, "hidden": 48, "activation": "swiglu", "remat": "none"},
            "mesh": {"seq": 2, "fsdp": 2},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5},
            "training": {"steps": 40, "batch": 4, "row_steps": 32, "log_every": 40},
        },
        "test",
    )
    run_training(config, folder / "run")
    return folder


def test_it_learns_to_count(run):
    (line,) = (json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines())
    assert line["loss"] < 0.1 < np.log(12) and line["tokens"] == 40 * 4 * 32


def test_it_is_not_rolled_out(run):
    with pytest.raises(UserError, match="language_model has no policy"):
        evaluate(run / "run", reference=False)


def test_another_text_is_refused(run):
    text = run / "text.npy"
    kept = text.read_bytes()
    np.save(text, np.arange(2000, dtype=np.uint16) % 10)
    with pytest.raises(UserError, match=r"text.npy: not the data that .* began with \(tokens, sum changed\)"):
        train(resume=run / "run")
    text.write_bytes(kept)


def test_a_run_goes_on_with_longer_documents(tmp_path):
    """And with the ids before each token, on a ring."""
    for length in (16, 32):
        np.save(tmp_path / f"lines_{length}.npy", np.tile(np.arange(length, dtype=np.uint8) % 10, (8, 1)))
    config = {
        "data": {"store": str(tmp_path / "lines_16.npy"), "task": "next_token"},
        "agent": {"name": "language_model", "bins": 10, "previous": 2},
        "model": {"layers": 1, "width": 8, "position_encoding": "none", "trial_encoding": "none"},
        "mesh": {"seq": 2},
        "training": {"steps": 1, "batch": 2, "row_steps": 16, "log_every": 1},
    }
    run_training(parse_config(config, "test"), tmp_path / "run")
    longer = f"data.store={tmp_path / 'lines_32.npy'}"
    train(None, longer, "training.steps=2", "training.row_steps=32", resume=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["tokens"] == 8 * 32
