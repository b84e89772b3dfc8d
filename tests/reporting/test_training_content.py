"""Runs that are not evaluated: compared on losses alone, and shown as such beside those that are."""

import json
import shutil

import pytest

from ringrl.errors import UserError
from ringrl.reporting import summarise_runs, write_report

VALIDATION = {10: 2.0, 20: 0.75, 30: 1.25}


@pytest.fixture
def half_finished(make_run):
    """A function (name, agent): a run of 30 of 40 steps that has not been evaluated, its validation loss every 10."""

    def make(name, agent="agentic_transformer"):
        run = make_run(name, agent=agent, points=1)
        shutil.rmtree(run / "evaluation")
        lines = [{"step": step, "loss": 3.0 / step, "tokens": 100.0 * step} for step in range(5, 31, 5)]
        lines = [
            line | {"validation_loss": VALIDATION[line["step"]]} if line["step"] % 10 == 0 else line for line in lines
        ]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("steps: ", "steps: 40  # "))
        return run

    return make


def test_two_trainings_are_compared_on_their_losses(half_finished, tmp_path):
    runs = [half_finished("at"), half_finished("dt", "decision_transformer")]
    page = write_report(runs, tmp_path / "report")
    text, summary = page.read_text(), json.loads((page.parent / "summary.json").read_text())
    assert (
        summary["tasks"] == {}
        and (page.parent / "trainings.png").read_bytes() == (page.parent / "report.png").read_bytes()
    )
    assert [each["label"] for each in summary["trainings"]] == ["Agentic Transformer", "Decision Transformer"]
    about = summary["trainings"][0]
    assert (about["step"], about["loss"], about["evaluated"]) == (30, 0.1, False)
    assert (about["validation_loss"], about["lowest_validation_loss"], about["lowest_at"]) == (1.25, 0.75, 20)
    assert "<title>Trainings" in text and "0.75 at step 20" in text and f"ringrl evaluate {runs[0]}" in text
    assert "Agentic Transformer, held-out episodes" in text


def test_a_half_finished_run_is_shown_beside_those_that_are_evaluated(half_finished, make_run, tmp_path):
    runs = [make_run("done", agent="behavior_cloning"), half_finished("half")]
    page = write_report(runs, tmp_path / "report")
    text = page.read_text()
    assert "Not evaluated yet" in text and "Behavior Cloning" in text
    summary = summarise_runs(runs)
    assert list(summary["tasks"]["walker_run"]["agents"]) == ["Behavior Cloning"]
    assert [each["evaluated"] for each in summary["trainings"]] == [True, False]


def test_repetitions_have_their_folders_names_too(half_finished, tmp_path):
    page = write_report([half_finished("one"), half_finished("two")], tmp_path / "report")
    assert "Agentic Transformer · one" in page.read_text() and "Agentic Transformer · two" in page.read_text()


def test_a_run_that_has_logged_nothing_is_an_error(half_finished, tmp_path):
    run = half_finished("empty")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="empty: is not evaluated, and has not logged a training step yet"):
        write_report(run, tmp_path / "report")
    assert not (tmp_path / "report" / "index.html").exists()
