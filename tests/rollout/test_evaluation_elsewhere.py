"""Evaluation of a run that can only be read: tables in a folder of their own, and nothing rolled out in vain."""

import importlib.util

import pytest

from ringrl.cli.run_verbs import EvaluateVerb
from ringrl.errors import UserError
from ringrl.reporting.statistics.evaluated_run import read_runs
from ringrl.rollout import evaluate as evaluations
from ringrl.run import RunDirectory
from ringrl.training.loop import run_training
from tests.builders import limit_evaluation


@pytest.fixture
def run(tmp_path, tiny_config, monkeypatch):
    limit_evaluation(monkeypatch, 22)
    config = tiny_config({"name": "agentic_transformer", "trajectories": 2}, training={"steps": 1})
    run_training(config, tmp_path / "run")
    return tmp_path / "run"


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_are_written_elsewhere_and_a_report_of_them_is_one_of_the_run(run, tmp_path, capsys):
    before, out = content(run), tmp_path / "tables"
    EvaluateVerb(run, trials=2, envs=2, out=out).run()
    EvaluateVerb(run, trials=2, envs=2, targets=(1.0, 2.0), out=out).run()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("returns: ")]
    assert said == [f"returns: {out / name}" for name in ("returns.csv", "targets.csv")]
    assert content(run) == before
    (found,) = read_runs(out)
    assert found.config == RunDirectory(run).settings() and len(found.returns) == 8 and len(found.targets) == 8
    assert found.name == "tables" and found.directory.table() == out / "returns.csv" and len(found.metrics.step) == 1


def test_what_cannot_be_written_is_said_before_anything_is_rolled_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluations.Evaluated, "roll_out", lambda *_, **__: pytest.fail("rolled out"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/tables/returns.csv: cannot be written"):
        evaluations.evaluate(run, out=tmp_path / "file" / "tables")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for video, words in (("film", "give a name.mp4"), ("file/film.mp4", "file/film.mp4: cannot be written")):
        with pytest.raises(UserError, match=words):
            evaluations.evaluate(run, video=tmp_path / video)
    with pytest.raises(UserError, match="cannot render cartpole_balance"):  # see conftest
        evaluations.evaluate(run, video=tmp_path / "film.mp4")
