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


def test_each_number_is_compared_with_the_one_before_it(make_run):
    """By hand: 20, 80, 160 more than none in every environment, half of that in the last trial; then 0 more."""
    runs = [make_run(f"s{seed}", seed=seed, demonstrations=WORTH | {32: 160.0}, **SMALL) for seed in (0, 1)]
    (curve,), _ = curves(*runs)
    first, last = curve.steps["first"], curve.steps["last"]
    assert [(pair.fewer, pair.more) for pair in first] == [(0, 1), (1, 4), (4, 16), (16, 32)]
    np.testing.assert_allclose([pair.difference.value for pair in first], [20, 60, 80, 0], atol=2.5)
    np.testing.assert_allclose([pair.difference.value for pair in last], [10, 30, 40, 0], atol=2.5)
    assert [pair.above for pair in first] == [True, True, True, None]
    assert curve.finding("first").endswith("; it rises between 0 and 1, between 1 and 4, between 4 and 16; "
                                           "no difference shown between 16 and 32.")  # fmt: skip


def test_a_single_trial_is_shown_once(make_run, tmp_path):
    run = make_run(trials=1, demonstrations=WORTH)
    (curve,), _ = curves(run)
    assert list(curve.shown) == ["first"] and "Agentic Transformer, the one trial: " in curve.finding("first")
    text = write_report([run], tmp_path / "report").read_text()
    assert text.count("after 16 demonstrations against") > 0 and "Left: mean return of the first" not in text
    assert text.index("after 16 demonstrations</span>") < text.index("Return against demonstrations in the context")
    assert "Return at each trial" not in text  # of a single trial there is nothing to see
    lead, curve = (tmp_path / "report" / name for name in ("report.png", "demonstrations.png"))
    assert lead.read_bytes() == curve.read_bytes()


def test_agents_share_the_figure(make_run, tmp_path):
    """Two agents, two seeds of one, and the reference lines."""
    runs = [make_run(f"s{seed}", seed=seed, demonstrations=WORTH, expert=480.0) for seed in (0, 1)]
    runs.append(make_run("td3", agent="td3", target=None, demonstrations={1: 5.0, 4: 10.0, 64: 20.0}))
    text = write_report(runs, tmp_path / "report").read_text()
    found = json.loads((tmp_path / "report" / "summary.json").read_text())["tasks"]["walker_run"]["demonstrations"]
    assert {name: curve["numbers"] for name, curve in found.items()} == {
        "Agentic Transformer": [0, 1, 4, 16],
        "TD3": [0, 1, 4, 64],
    }
    assert "64 minus 4" in text and "16 minus 4" in text


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
    assert [(step["from"], step["to"], step["rises"]) for step in curve["first"]["steps"]] == [
        (0, 1, True), (1, 4, True), (4, 16, True),
    ]  # fmt: skip
    assert "Return against demonstrations in the context" in text and "<td>16 minus 4</td>" in text
    assert "after 16 demonstrations against" in text
