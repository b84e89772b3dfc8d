"""Return against the number of demonstrations: from synthetic runs to words, numbers and a figure."""

import json

import numpy as np
import pytest

from ringrl.reporting import write_report
from ringrl.reporting.statistics.evaluated_run import read_run
from ringrl.reporting.statistics.series import arrange
from ringrl.reporting.statistics.task_statistics import analyse

WORTH = {1: 20.0, 4: 80.0, 16: 160.0}
SMALL = {"points": 0, "data": False, "target": None}


def curves(*paths):
    (section,) = arrange([read_run(path) for path in paths])
    return analyse(section).demonstrations, section


def test_numbers_are_pooled_over_seeds_and_the_plain_evaluation_is_that_of_none(make_run):
    runs = [make_run(f"s{seed}", seed=seed, demonstrations=WORTH, **SMALL) for seed in (0, 1)]
    (curve,), section = curves(*runs)
    assert curve.numbers == (0, 1, 4, 16) and (curve.seeds, curve.envs) == (2, 8)
    pooled = section.series[0].demonstrations
    np.testing.assert_array_equal(pooled.returns[0], section.series[0].returns)
    assert curve.gain["first"].value == pytest.approx(160, abs=2)  # paired: the environments' own noise cancels
    assert curve.gain["last"].value == pytest.approx(80, abs=2)
    assert curve.gain["first"].high - curve.gain["first"].low < 4
    assert curve.above("first") is True
    words = curve.finding("first")
    assert "after 16 demonstrations against" in words and "after none: above it (+16" in words


def test_numbers_that_not_all_seeds_have_are_left_out(make_run):
    runs = [make_run("a", seed=0, demonstrations={1: 5.0, 2: 5.0}), make_run("b", seed=1, demonstrations={2: 5.0})]
    (curve,), _ = curves(*runs)
    assert curve.numbers == (0, 2)


def test_nothing_is_claimed_of_a_level_curve_or_of_few_environments(make_run):
    (level,), _ = curves(make_run(demonstrations={8: 0.0}))
    assert level.above("last") is None and "no difference shown" in level.finding("last")
    (few,), _ = curves(make_run("few", envs=3, demonstrations={8: 90.0}))
    assert "too few environments (3) to tell" in few.finding("first")
    (worse,), _ = curves(make_run("worse", demonstrations={8: -90.0}))
    assert worse.above("first") is False and "below it (\u2212" in worse.finding("first")


def test_one_number_alone_is_no_curve_and_an_evaluation_says_with_how_many_it_began(make_run):
    assert curves(make_run())[0] == ()
    run = make_run("begun", **SMALL)
    file = run / "evaluation" / "returns.csv"
    file.write_text(file.read_text().replace(",,0\n", ",,16\n"))
    found, section = curves(run)
    assert found == () and section.notes == ("Agentic Transformer: its contexts began with 16 demonstrations.",)


def test_a_table_of_another_checkpoint_is_noted(make_run):
    run = make_run(demonstrations=WORTH)
    file = run / "evaluation" / "demonstrations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint_step": 7}))
    assert "demonstrations.csv is of checkpoint 7" in curves(run)[1].notes[0]


def test_the_page_and_the_summary_carry_it(make_run, tmp_path):
    out = tmp_path / "report"
    text = write_report([make_run(demonstrations=WORTH, expert=480.0)], out).read_text()
    assert (out / "demonstrations.png").stat().st_size > 0
    found = json.loads((out / "summary.json").read_text())["tasks"]["walker_run"]["demonstrations"]
    curve = found["Agentic Transformer"]
    assert curve["numbers"] == [0, 1, 4, 16] and len(curve["first"]["points"]) == 4 and curve["first"]["rises"] is True
    assert "Return against demonstrations in the context" in text
    assert "after 16 demonstrations against" in text
