"""What evaluations and reports print, and that a quick look replaces nothing."""

import csv
import io
import json

import pytest

from ringrl.training.start import train
from tests.builders import limit_evaluation


def test_an_evaluation_is_printed_and_not_replaced_by_one_of_other_settings(ringrl, tiny_config, tmp_path, monkeypatch):
    limit_evaluation(monkeypatch, 40)
    run = train(tiny_config({"name": "behavior_cloning", "window": 4}, training={"steps": 2}), out=tmp_path / "run")
    capped = ("--trials", 2, "--envs", 2)
    status, out, err = ringrl("evaluate", run, *capped)
    *_, path, heading, agent, random = out.splitlines()  # before them, of the training
    assert (status, err, path) == (0, "", f"returns: {run}/evaluation/returns.csv")
    assert heading.split() == ["mean", "return,", "95", "%", "trial", "1", "trial", "2"]
    assert agent.split()[0] == "behavior_cloning" and random.split()[0] == "random"
    before = (run / "evaluation/returns.csv").read_bytes()
    status, out, err = ringrl("evaluate", run, "--trials", 1, "--envs", 2)
    assert (status, out) == (2, "") and "returns.csv: was made with trials 2, not 1; replace it with --overwrite" in err
    for wrong in ("../a", "", ".hidden"):
        status, _, err = ringrl("evaluate", run, "--name", wrong)
        assert status == 2 and "is no folder's name" in err
    status, out, _ = ringrl("evaluate", run, "--trials", 1, "--envs", 2, "--name", "one-trial")
    assert status == 0 and f"returns: {run}/evaluations/one-trial/returns.csv" in out
    status, out, _ = ringrl("report", run, run / "evaluations/one-trial", "--out", tmp_path / "both")
    assert status == 0 and (tmp_path / "both/index.html").is_file()
    assert (run / "evaluation/returns.csv").read_bytes() == before
    status, out, _ = ringrl("evaluate", run, *capped, "--json", "--no-reference")  # the same settings: the same numbers
    (means,) = json.loads(out)["tables"].values()
    assert status == 0 and [len(trials) for trials in means.values()] == [2]
    assert means["behavior_cloning"][0]["value"] == pytest.approx(mean_of(before.decode(), "behavior_cloning", 0))
    status, out, _ = ringrl("evaluate", run, "--trials", 1, "--envs", 2, "--overwrite", "--json")
    assert status == 0 and len(json.loads(out)["tables"]) == 1
    status, out, _ = ringrl("report", run)
    assert status == 0 and out.splitlines()[-1] == f"report: {run}/report/index.html"
    status, out, _ = ringrl("report", run, "--json")
    assert status == 0 and json.loads(out)["tasks"]["cartpole_balance"]["agents"]["Behavior Cloning"]["envs"] == 2


def mean_of(table, agent, trial):
    rows = [row for row in csv.DictReader(io.StringIO(table)) if row["agent"] == agent and int(row["trial"]) == trial]
    return sum(float(row["return"]) for row in rows) / len(rows)
