"""What exploring first is worth: from tables to sentences, a figure, and summary.json."""

import csv
import json

import numpy as np
import pytest

from ringrl.reporting import write_report
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import analyse
from ringrl.returns import COLUMNS

TRIALS, ENVS = 8, 6
LEVELS = {0: 20.0, 2: 50.0, 4: 80.0}  # what trials earn after so many that explored, which earn 10


def explore(run, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with (run / "evaluation" / "explore.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, level in LEVELS.items():
            for env, trial in np.ndindex(ENVS, TRIALS):
                earned = 10.0 if trial < number else level + rng.normal()
                writer.writerow(["decision_pretrained", "walker_run", seed, env, trial, earned, 100, "", 0, number])


@pytest.fixture
def runs(make_run):
    small = {"points": 0, "data": False, "target": None, "envs": ENVS, "trials": 2, "agent": "decision_pretrained"}
    made = [make_run(f"s{seed}", seed=seed, **small) for seed in (0, 1)]
    for seed, run in enumerate(made):
        explore(run, seed)
    return made


def test_levels_after_each_number_are_compared_with_the_fewest(runs):
    (section,) = arrange([read_run(run) for run in runs])
    (curve,) = analyse(section).explorations
    assert (curve.seeds, curve.envs, curve.trials, curve.last) == (2, ENVS, TRIALS, 2)
    assert [each.number for each in curve.explored] == [0, 2, 4]
    assert [each.measures["last"].value for each in curve.explored] == pytest.approx([20, 50, 80], abs=1)
    assert [each.measures["next"].value for each in curve.explored] == pytest.approx([20, 50, 80], abs=1)
    assert curve.explored[2].measures["mean"].value == pytest.approx(45, abs=1)
    assert [each.by_trial[1].value for each in curve.explored[1:]] == [10, 10]
    assert [each.gain["last"].value for each in curve.explored] == pytest.approx([0, 30, 60], abs=1)
    assert curve.above(curve.explored[1]) is True
    assert "the mean of the last 2 of 8 trials" in curve.finding and "where no trial explored" in curve.finding
    assert "after 4 (above it, +59" in curve.finding


def test_the_page_draws_them(runs, tmp_path):
    page = write_report(runs, tmp_path / "report").read_text()
    assert (tmp_path / "report" / "explored.png").is_file()
    assert "Exploring first, then acting" in page and "Trials that explore" in page
    (task,) = json.loads((tmp_path / "report" / "summary.json").read_text())["tasks"].values()
    (found,) = task["explorations"].values()
    assert [each["number"] for each in found["explored"]] == [0, 2, 4] and found["last"] == 2
    assert len(found["explored"][0]["returns_by_trial"]) == TRIALS
