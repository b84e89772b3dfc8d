"""Ablations after demonstrations: paired with the intact evaluation of the same number, and shown over the numbers."""

import csv
import json

import pytest

from ringrl.reporting import write_report
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import analyse

SMALL = {"points": 0, "data": False, "target": None, "envs": 6, "trials": 2, "agent": "decision_pretrained"}
GIVEN = {4: 20.0, 16: 60.0}


def ablate(run, name: str, costs: dict[int, float]) -> None:
    """Write the ablation's table: every trial after so many demonstrations earns so much less."""
    evaluation = run / "evaluation"
    tables = [(evaluation / f"{table}.csv").read_text().splitlines() for table in ("returns", "demonstrations")]
    rows = [row for table in tables for row in csv.DictReader(table)]
    chosen = [row for row in rows if row["agent"] == "decision_pretrained" and int(row["demonstrations"]) in costs]
    for row in chosen:
        row["return"] = float(row["return"]) - costs[int(row["demonstrations"])] + 0.01 * int(row["env"])
    with (evaluation / f"ablation-{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)


@pytest.fixture
def runs(make_run):
    made = [make_run(f"s{seed}", seed=seed, demonstrations=GIVEN, **SMALL) for seed in (0, 1)]
    for run in made:
        ablate(run, "blind", {0: 5.0, 4: 10.0, 16: 30.0, 99: 0.0})
        ablate(run, "unpaid", {16: -7.0})
    return made


def test_an_ablation_is_paired_with_the_intact_evaluation_of_its_number(runs):
    (section,) = arrange([read_run(run) for run in runs])
    found = analyse(section)
    effects = found.demonstrated_ablations["decision_pretrained"]
    assert not found.own_ablations
    assert [(each.name, each.demonstrations) for each in effects] == [
        ("blind", 0), ("blind", 4), ("blind", 16), ("unpaid", 16),
    ]  # fmt: skip
    assert [each.cost.value for each in effects] == pytest.approx([5, 10, 30, -7], abs=0.1)
    assert all((each.seeds, each.envs, len(each.intact)) == (2, 6, 2) for each in effects)
    (curve,) = found.demonstrations
    points = dict(zip(curve.numbers, curve.points["last"], strict=True))
    assert [each.intact[-1] for each in effects] == [points[each.demonstrations] for each in effects]
    assert effects[2].sentence.startswith("After 16 demonstrations, with no reward anywhere")
    assert "the last trial earns 30.0 less" in effects[2].sentence
    assert "with those earlier trials alone that were not paid, the last trial earns 7.0" in effects[3].sentence


def test_the_page_shows_them_over_the_numbers(runs, tmp_path):
    page = write_report(runs, tmp_path / "report").read_text()
    assert (tmp_path / "report" / "demonstrated_ablations.png").is_file()
    assert not (tmp_path / "report" / "ablations.png").exists()
    assert "What the demonstrations are worth" in page and "unpaid, 16 demonstrations" in page
    (task,) = json.loads((tmp_path / "report" / "summary.json").read_text())["tasks"].values()
    (listed,) = task["demonstrated_ablations"].values()
    assert [(each["name"], each["demonstrations"], each["matters"]) for each in listed[-2:]] == [
        ("blind", 16, True), ("unpaid", 16, False),
    ]  # fmt: skip
    assert task["ablations"] == {}
