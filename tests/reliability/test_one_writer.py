"""Of two that write into one folder, the second is refused before it has written anything."""

import pytest

from ringrl.errors import UserError
from ringrl.locks import exclusive
from ringrl.rollout.evaluate import evaluate
from ringrl.run import RunDirectory
from ringrl.training.loop import run_training
from ringrl.training.start import train


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "run"
    run_training(tiny_config({"name": "behavior_cloning"}, training={"steps": 1}), path)
    return path


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_two_trainings_in_one_folder(run, tiny_config, tmp_path):
    before = files(run)
    with RunDirectory(run).training_alone():
        with pytest.raises(UserError, match=f"^{run}: in use by process .*; wait for it to end, or end it$"):
            train(resume=run)
    assert files(run) == before
    out, config = tmp_path / "new", tiny_config({"name": "behavior_cloning"})
    with RunDirectory(out).training_alone(), pytest.raises(UserError, match=f"^{out}: in use by process"):
        train(config, out=out)
    assert not out.exists()


def test_a_run_that_another_made_meanwhile_is_not_trained_over(run, tiny_config, monkeypatch):
    """The other one began after this one had looked, and has ended."""
    looks = iter([lambda run: None, RunDirectory.check_new])
    monkeypatch.setattr(RunDirectory, "check_new", lambda run: next(looks)(run))
    before = files(run)
    with pytest.raises(UserError, match="there is a run already"):
        train(tiny_config({"name": "behavior_cloning"}, training={"steps": 3}), out=run)
    assert files(run) == before


def test_two_evaluations_of_one_table(run):
    tables = RunDirectory(run)
    with tables.writing_tables(["returns"]):
        with pytest.raises(UserError, match="evaluation/returns.csv: in use by process"):
            evaluate(run, trials=1, envs=1)
        with (
            pytest.raises(UserError, match="evaluation/returns.csv: in use by process"),
            tables.writing_tables(["targets", "returns"]),
        ):
            pytest.fail("never entered")
        with tables.writing_tables(["targets"]):
            assert not tables.table().exists()
    assert not (run / "evaluation").exists()


def test_another_table_and_a_live_training_are_no_hindrance(run):
    with RunDirectory(run).training_alone(), RunDirectory(run).writing_tables(["targets"]):
        assert not list((run / "evaluation").glob("*.csv"))
        with exclusive(run / "evaluation" / ".returns.lock"):
            pass
