"""Agents over several tasks: normalised by hand, stratified bootstrap intervals, verdicts only where they hold."""

import json

import numpy as np
import pytest

from ringrl.agent_record import AgentRecord
from ringrl.reporting import write_report
from ringrl.reporting.page.across_content import across_tables
from ringrl.reporting.statistics.across_tasks import compare_across
from ringrl.reporting.statistics.bootstrap import (
    RESAMPLES,
    Estimate,
    difference,
    from_resamples,
    resample_runs,
    shown_above,
)
from ringrl.reporting.statistics.evaluated_run import DataSet
from ringrl.reporting.statistics.series import Series, TaskSection
from ringrl.reporting.statistics.task_statistics import agent_statistics, analyse, normalised

ZERO, HUNDRED = np.zeros((2, 9)), np.full((2, 9), 200.0)  # the random policy's returns and the expert's


def agent(label: str, returns: list | np.ndarray) -> Series:
    """A series whose returns are [seeds, envs, trials]."""
    array = np.asarray(returns, np.float64)
    return Series(
        label, AgentRecord(label, label, False), (), tuple(range(len(array))), array, np.full(array.shape, np.nan)
    )


def section(task: str, *series: Series, expert: np.ndarray = HUNDRED) -> TaskSection:
    return TaskSection(task, series, ZERO, expert, (), ())


def test_returns_scores_average_and_iqm_of_a_few_integers():
    """Two tasks; two seeds, one environment each; the random policy has 0, the expert 200."""
    a = agent("A", [[[10, 40]], [[20, 60]]])  # largest: 40 and 60, so 20 and 30 of 100
    b = agent("A", [[[100, 80]], [[30, 140]]])  # largest: 100 and 140, so 50 and 70 of 100
    across = compare_across([analyse(section("t1", a)), analyse(section("t2", b))])
    largest = across.comparisons["max_of_n"]
    assert across.trials == 2 and across.notes == ()
    assert [largest.returns[task]["A"].value for task in ("t1", "t2")] == [50, 120]
    assert [largest.scores[task]["A"].value for task in ("t1", "t2")] == [25, 60]
    assert largest.average["A"].value == 42.5
    assert largest.iqm["A"].value == 40  # of 20, 30, 50, 70 the middle two
    first, last, mean = (across.comparisons[key].average["A"].value for key in ("first", "last", "mean"))
    assert (first, last, mean) == (20, 40, 30)


def test_the_largest_return_is_among_as_many_trials_for_all():
    many = agent("A", np.arange(12.0).reshape(1, 2, 6))
    few = agent("B", np.arange(6.0).reshape(1, 2, 3))
    across = compare_across([analyse(section("t1", many, few)), analyse(section("t2", many))])
    largest = across.comparisons["max_of_n"].returns["t1"]
    assert across.trials == 3
    assert largest["A"].value == 5  # (2 + 8) / 2
    assert largest["B"].value == 3.5  # (2 + 5) / 2
    assert across.comparisons["last"].returns["t1"]["A"].value == 8  # its own last: (5 + 11) / 2
    assert any("3 to 6 trials" in note for note in across.notes)


def test_the_largest_return_is_scored_against_the_reference_policies_own_largest():
    """Random's trials are 0, 40, 80 of mean 40 and largest 80, of two trials 40; the expert's 100, 200, 300."""
    random, expert = np.array([[0.0, 40.0, 80.0]] * 2), np.array([[100.0, 200.0, 300.0]] * 2)
    a = agent("A", [[[40, 120]], [[40, 120]]])
    task = TaskSection("t1", (a,), random, expert, (), ())
    levels = analyse(task).levels
    assert levels.scale == (40, 200) and levels.largest_scale(2) == (40, 200) and levels.largest_scale(3) == (80, 300)
    scores = normalised(a, agent_statistics(a.returns), levels)
    assert scores is not None and scores["max_of_n"] is not None and scores["max_of_n"].value == 50
    wide = agent("A", [[[40, 80, 190, 900]]] * 2)  # of the fourth trial the policies know nothing
    across = compare_across([analyse(TaskSection(name, (wide,), random, expert, (), ())) for name in ("t1", "t2")])
    assert across.trials == 3 and across.comparisons["max_of_n"].average["A"].value == 50
    assert across.notes == ("The reference policies have 3 trials, so the largest return is of the first 3.",)
    assert across.comparisons["first"].average["A"].value == 0


def test_without_an_expert_the_largest_return_has_the_one_scale_and_what_luck_is_worth_is_said():
    """Random's trials are 0 and 40 of mean 20, its larger 40; the data's best tenth is 120."""
    data = DataSet("t", "d", "s", "exact", (), np.array([0.0] * 9 + [120.0]), np.zeros(10, np.int64), 10)
    random, a = np.array([[0.0, 40.0]] * 2), agent("A", [[[20, 70]], [[20, 70]]])
    both = [analyse(TaskSection(name, (a,), random, np.zeros((0, 0)), (data,), ())) for name in ("t1", "t2")]
    across = compare_across(both)
    assert across.comparisons["max_of_n"].average["A"].value == across.comparisons["last"].average["A"].value == 50
    assert across.notes == (
        "What luck is worth: the random policy’s own largest among n scores 20.0 on t1, 20.0 on t2.",
    )


def test_agents_without_a_task_and_tasks_without_a_scale_are_left_out_and_named():
    whole, part = agent("A", np.ones((1, 3, 2))), agent("B", np.ones((1, 3, 2)))
    analyses = [analyse(section("t1", whole, part)), analyse(section("t2", whole)),
                analyse(section("t3", whole, expert=np.zeros((0, 0))))]  # fmt: skip
    across = compare_across(analyses)
    largest = across.comparisons["max_of_n"]
    assert list(largest.average) == list(largest.iqm) == ["A"]
    assert [(pair.one, pair.other, pair.tasks) for pair in largest.pairs] == [("A", "B", ("t1",))]
    assert largest.pairs[0].verdict == "one training seed"
    (pair,) = across_tables(across)["pairs"]
    assert pair["name"] == "A \u2212 B (t1)" and pair["last_verdict"] == "one training seed"
    assert set(largest.scores) == {"t1", "t2"} and set(largest.returns) == {"t1", "t2", "t3"}
    assert across.notes == (
        "Without a scale, and so left out of average and IQM: t3.",
        "Not evaluated on every task, and so left out of average and IQM: B.",
    )
    rows = across_tables(across)["scores"]
    assert [row["name"] for row in rows] == ["t1", "t2", "Average", "IQM"]
    assert rows[1]["cells"][1] == {"name": "B", "value": "", "interval": ""}


def test_differences_are_claimed_only_where_the_interval_carries_them():
    rng = np.random.default_rng(0)
    tasks = []
    for task in ("t1", "t2"):
        luck = rng.normal(100, 30, (1, 8, 1))  # of the environments: all agents share it
        noise = [luck + rng.normal(shift, 3, (3, 8, 2)) for shift in (20, 0, 0)]
        tasks.append(analyse(section(task, *(agent(name, each) for name, each in zip("ABC", noise, strict=True)))))
    pairs = {(pair.one, pair.other): pair for pair in compare_across(tasks).comparisons["max_of_n"].pairs}
    assert pairs["A", "B"].above is True and pairs["A", "B"].verdict == "A is higher"
    assert pairs["B", "C"].above is None and pairs["B", "C"].verdict == "no difference shown"
    average = compare_across(tasks).comparisons["max_of_n"].average["A"]
    shared = pairs["A", "B"].difference
    assert shared.high - shared.low < 0.5 * (average.high - average.low)  # the shared luck cancels


def test_no_interval_where_a_task_is_a_single_unit_and_no_verdict_from_few():
    alone = analyse(section("t1", agent("A", [[[100, 110]]]), agent("B", [[[1, 2]]])))
    across = compare_across([alone, analyse(section("t2", agent("A", [[[90, 95]]]), agent("B", [[[3, 4]]])))])
    largest = across.comparisons["max_of_n"]
    assert not largest.average["A"].has_interval and not largest.iqm["A"].has_interval
    assert largest.pairs[0].above is None and not largest.pairs[0].difference.has_interval
    assert largest.pairs[0].verdict == "one training seed"
    assert shown_above(Estimate(5.0, 4.0, 6.0), 5) is None
    assert shown_above(Estimate(5.0, 4.0, 6.0), 6) is True and shown_above(Estimate(-5.0, -6.0, -4.0), 6) is False


def test_resamples_are_of_seeds_within_agents_and_of_environments_for_all():
    values = np.random.default_rng(1).normal(0, 1, (3, 5))
    runs = resample_runs(values, "t", "A")
    assert runs.shape == (RESAMPLES, 3)
    np.testing.assert_array_equal(runs, resample_runs(values, "t", "A"))
    assert not np.array_equal(runs, resample_runs(values, "t", "B"))
    one = values[:1]  # of a single seed only environments are drawn: the same for everyone
    np.testing.assert_array_equal(resample_runs(one, "t", "A"), resample_runs(one, "t", "B"))
    number = difference(one + 7, one, "t", ("A", "B"))
    assert (number.value, number.low, number.high) == pytest.approx((7, 7, 7))
    number = from_resamples(2.0, np.arange(1001.0))
    assert (number.value, number.low, number.high) == pytest.approx((2, 25, 975))


def test_the_stratified_interval_covers_about_as_often_as_it_says():
    """Six tasks, five seeds, sixteen environments, all independent: intervals of the average of a mean of 50."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(40):
        draws = [np.mean(resample_runs(rng.normal(50, 10, (5, 16)) + rng.normal(0, 6, (5, 1)), str(task), "A"), axis=1)
                 for task in range(6)]  # fmt: skip
        number = from_resamples(0.0, np.mean(draws, axis=0))
        covered += number.low <= 50 <= number.high
    assert 34 <= covered <= 40


def test_the_page_and_the_summary_compare_across_tasks(make_run, tmp_path):
    small = {"envs": 4, "trials": 2, "points": 0, "data": False, "expert": 480.0}
    runs = []
    for task in ("hidden_a", "hidden_b"):
        runs += [make_run(f"{task}{seed}", task=task, seed=seed, **small) for seed in (0, 1)]
        runs.append(make_run(f"{task}bc", agent="behavior_cloning", task=task, gain=0.0, seed=5, **small))
    index = write_report(runs, tmp_path / "report")
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    across = summary["across_tasks"]
    assert across["n"] == 2 and set(across["measures"]) == {"max_of_n", "first", "last", "mean"}
    last = across["measures"]["last"]
    assert set(last) == {"returns", "normalised", "average", "iqm", "differences"}
    (pair,) = last["differences"]
    assert (pair["one"], pair["other"]) == ("Agentic Transformer", "Behavior Cloning")
    assert pair["difference"]["low"] < pair["difference"]["value"] < pair["difference"]["high"]
    assert summary["tasks"]["hidden_a"]["references"]["hundred"] == "mean of the expert"
    text = index.read_text()
    for words in ("Largest return among n trials", "Average", "IQM", "Differences of the averages", "n = 2 trials"):
        assert words in text
    low, high = (last["average"]["Agentic Transformer"][key] for key in ("low", "high"))
    assert f"[{low:.1f}, {high:.1f}]" in text
