"""A run's default name, and a run that ended before its first checkpoint: its name is free."""

import pytest

from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.training.start import train

AGENT = {"name": "behavior_cloning", "window": 4}


def files(run):
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def cut_off(tiny_config, tmp_path, monkeypatch):
    """A run whose training failed at its second step, before anything was kept."""
    from ringrl.training.loop import _Steps

    take = _Steps.take

    def fail(self, step, state, values):
        if step == 2:
            raise RuntimeError("the machine went away")
        take(self, step, state, values)

    with monkeypatch.context() as patched:
        patched.setattr(_Steps, "take", fail)
        with pytest.raises(RuntimeError, match="went away"):
            train(tiny_config(AGENT), out=tmp_path / "run")
    assert RunDirectory(tmp_path / "run").exists
    return tmp_path / "run"


def test_it_begins_anew_with_other_settings(cut_off, tiny_config, tmp_path, caplog):
    train(tiny_config(AGENT, model={"width": 32}, training={"steps": 3}), out=cut_off)
    assert "ended there before its first checkpoint; it begins anew" in caplog.text
    assert RunDirectory(cut_off).config().model.width == 32
    fresh = train(tiny_config(AGENT, model={"width": 32}, training={"steps": 3}), out=tmp_path / "fresh")
    same = {name for name in files(fresh) if "tensorboard" not in name and "checkpoints" not in name}
    assert same == {name for name in files(cut_off) if "tensorboard" not in name and "checkpoints" not in name}
    with pytest.raises(UserError, match="there is a run already"):  # which has kept a step
        train(tiny_config(AGENT), out=cut_off)


@pytest.mark.parametrize("removed", ["SHA256SUMS", "agent.py", "run.json", "dataset.json"])
def test_its_removal_may_be_cut_off_too(removed, cut_off, tiny_config):
    for name in ("SHA256SUMS", "agent.py", "run.json", "dataset.json"):
        (cut_off / name).unlink()
        if name == removed:
            break
    train(tiny_config(AGENT, training={"steps": 2}), out=cut_off)
    assert RunDirectory(cut_off).config().training.steps == 2


@pytest.mark.parametrize("kept", ["evaluation/returns.csv", "export/model.safetensors", "finished"])
def test_a_run_whose_checkpoints_were_removed_later_is_not_replaced(kept, cut_off, tiny_config):
    (cut_off / kept).parent.mkdir(exist_ok=True)
    (cut_off / kept).touch()
    before = files(cut_off)
    with pytest.raises(UserError, match="there is a run already"):
        train(tiny_config(AGENT), out=cut_off)
    assert files(cut_off) == before


def test_files_of_others_are_not_removed(cut_off, tiny_config):
    (cut_off / "notes.txt").write_text("mine")
    train(tiny_config(AGENT, training={"steps": 2}), out=cut_off)
    assert (cut_off / "notes.txt").read_text() == "mine"


def test_runs_are_named_by_config_changes_and_seed(tiny_config, tmp_path, monkeypatch):
    from ringrl.config import dump_config

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(dump_config(tiny_config(AGENT)))
    changes = ("training.steps=2", "seed=3", "label='a b'", "optimizer.learning_rate=3e-3")
    assert str(train("own.yaml", *changes)) == "runs/own-steps=2-learning_rate=3e-3-seed3"
    assert str(train("own.yaml", "training.steps=1")) == "runs/own-steps=1-seed0"
