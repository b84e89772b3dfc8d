"""Statistics against numbers that a reader can work out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.agent_record import AgentRecord
from ringrl.reporting.statistics.bootstrap import Estimate, estimate, interquartile_mean, show
from ringrl.reporting.statistics.evaluated_run import DataSet, SourceSummary
from ringrl.reporting.statistics.series import Series, TaskSection
from ringrl.reporting.statistics.task_statistics import (
    References,
    agent_statistics,
    references,
    top_decile,
    trend,
    trends,
    verdict,
)

TEN = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 100]], dtype=np.float64)


def series(returns: np.ndarray) -> Series:
    target = np.full(returns.shape, np.nan)
    return Series(
        "AT", AgentRecord("my_at.py", "AT", across_trials=True), (), tuple(range(len(returns))), returns, target
    )


def dataset(returns: list[float], source: list[int] | None = None) -> DataSet:
    owner = np.asarray(source or [0] * len(returns), dtype=np.int64)
    sources = tuple(SourceSummary(f"s{i}", "rnd", int((owner == i).sum())) for i in range(owner.max() + 1))
    return DataSet("t", "d", "store", "exact", sources, np.asarray(returns, dtype=np.float64), owner, 10)


def test_mean_and_interquartile_mean_of_ten_integers():
    assert estimate(TEN).value == 14.5  # 145 / 10
    # A quarter of ten is two and a half: two are cut from each end, and 3 to 8 remain.
    assert estimate(TEN, interquartile_mean).value == 5.5
    assert interquartile_mean(np.arange(8.0)) == 3.5


def test_statistics_of_an_agent():
    # Two environments, three trials. First 10 and 20, last 40 and 30, best 40 and 50.
    returns = np.array([[[10, 30, 40], [20, 50, 30]]], dtype=np.float64)
    statistics = agent_statistics(returns)
    assert [number.value for number in statistics.by_trial] == [15, 40, 35]
    assert statistics.first.value == 15 and statistics.last.value == 35
    assert statistics.gain.value == 20  # (30 + 10) / 2
    assert statistics.mean.value == 30  # (80 / 3 + 100 / 3) / 2
    assert statistics.max_of_n.value == 45
    assert statistics.iqm.value == 35
    assert statistics.pairs == 2


def test_the_interval_of_two_units_spans_them():
    number = estimate(np.array([[1.0, 2.0]]))
    assert (number.value, number.low, number.high) == (1.5, 1.0, 2.0)


def test_constant_data_have_an_interval_of_no_width_and_one_unit_has_none():
    assert estimate(np.full((1, 10), 7.0)) == Estimate(7.0, 7.0, 7.0)
    assert estimate(np.full((3, 4), 7.0)) == Estimate(7.0, 7.0, 7.0)
    alone = estimate(np.array([[7.0]]))
    assert alone.value == 7 and not alone.has_interval and not alone.excludes_zero


def test_where_bca_is_undefined_percentiles_are_used():
    # The interquartile mean of the jackknife samples never varies here, so BCa divides by zero.
    number = estimate(np.array([[1, 1, 1, 1, 1, 1, 1, 2]], dtype=np.float64), interquartile_mean)
    assert number.value == 1 and number.has_interval


def test_intervals_are_reproducible():
    rng = np.random.default_rng(3)
    returns = rng.normal(100, 10, (3, 8, 4))
    assert agent_statistics(returns) == agent_statistics(returns)


def test_between_seed_spread_widens_the_interval():
    """Ten environments each, all alike within a seed: the evidence is three trainings, not thirty."""
    spread = np.repeat(np.array([[10.0], [20.0], [30.0]]), 10, axis=1) + np.linspace(0, 0.1, 10)
    pigeonhole = estimate(spread)
    flattened = estimate(spread.reshape(1, -1))
    assert pigeonhole.high - pigeonhole.low > 2 * (flattened.high - flattened.low)


def test_luck_that_seeds_share_is_not_averaged_away():
    """Three seeds evaluated in the same ten environments, which alone decide the return: ten observations."""
    luck = np.random.default_rng(0).normal(100, 20, 10)
    alone, thrice = estimate(luck[None]), estimate(np.stack([luck, luck, luck]))
    assert thrice.high - thrice.low > 0.8 * (alone.high - alone.low)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 12))
def test_an_interval_lies_within_the_data_and_shifts_with_them(seed, seeds, envs):
    values = np.random.default_rng(seed).integers(0, 1000, (seeds, envs)).astype(np.float64)
    number, shifted = estimate(values), estimate(values + 1000)
    assert values.min() <= number.low <= number.high <= values.max()
    assert shifted.low == pytest.approx(number.low + 1000) and shifted.high == pytest.approx(number.high + 1000)


def test_ninety_five_per_cent_intervals_cover_about_that_often():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        number = estimate(rng.normal(5, 2, (1, 16)))
        covered += number.low <= 5 <= number.high
    assert 0.87 <= covered / 200 <= 0.99


def test_normalised_scores():
    section = TaskSection(
        "t", (), np.array([[0.0, 20.0], [25.0, 35.0]]), np.zeros((0, 0)), (dataset([*range(0, 200, 10), 120.0]),), ()
    )
    levels = references(section)
    assert levels.random is not None and levels.random.value == 20
    assert levels.top_decile == 185  # of 21 episodes the best two: 190 and 180
    assert levels.best == 190
    assert levels.scale == (20, 185)
    assert [each.value for each in levels.random_largest] == [12.5, 27.5]  # (0 + 25) / 2, (20 + 35) / 2
    assert levels.largest(9)[0] == levels.random_largest[1]
    assert levels.largest_scale(2) == levels.scale  # without an expert there is one scale
    score = Estimate(102.5, 20.0, 185.0).scaled(20.0, 185.0)
    assert (score.value, score.low, score.high) == (50, 0, 100)


def test_data_paid_by_drawn_members_are_no_scale():
    members = replace(dataset([0.0, 400.0]), relabel="members")
    section = TaskSection("t", (), np.array([[0.0, 20.0]]), np.zeros((0, 0)), (members,), ())
    assert references(section).top_decile is None and references(section).scale is None
    both = replace(section, datasets=(members, dataset([5.0])))
    assert references(both).top_decile == 5


def test_there_is_no_scale_without_both_ends_in_order():
    assert References(None, 10.0, 11.0).scale is None
    assert References(Estimate(5.0), None, None).scale is None
    assert References(Estimate(10.0), 10.0, 11.0).scale is None
    assert references(TaskSection("t", (), np.zeros((0, 0)), np.zeros((0, 0)), (), ())) == References(None, None, None)


def test_the_best_tenth_has_at_least_one_episode():
    assert top_decile(np.array([3.0, 1.0])) == 3
    assert top_decile(np.arange(20.0)) == 18.5


def test_the_trend_is_taken_within_a_source():
    data = dataset([1, 2, 3, 9, 5, 4, 7, 7, 7], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert trend(data, 0) == pytest.approx(1) and trend(data, 1) == pytest.approx(-1)
    assert math.isnan(trend(data, 2)) and math.isnan(trend(dataset([1, 2]), 0))


def test_a_verdict_claims_no_more_than_the_interval_carries():
    first = np.array([300, 310, 320, 330, 340, 350, 360, 370, 380, 390], dtype=np.float64)
    step = np.array([50, 60, 40, 55, 45, 50, 60, 40, 55, 45], dtype=np.float64)
    rising = series(np.stack([first, first + step], axis=-1)[None])
    statistics = agent_statistics(rising.returns)
    assert statistics.gain.value == 50 and statistics.improves is True
    assert verdict(rising, statistics).startswith("AT: last trial 395 [")
    assert "improves in context, by +50.0 [+" in verdict(rising, statistics)
    falling = series(rising.returns[:, :, ::-1].copy())
    assert agent_statistics(falling.returns).improves is False
    assert "gets worse in context" in verdict(falling, agent_statistics(falling.returns))
    alone = AgentRecord("mine", "AT", across_trials=False)
    assert ": last trial higher than first, by +50.0 [+" in verdict(replace(rising, agent=alone), statistics)
    losing = verdict(replace(falling, agent=alone), agent_statistics(falling.returns))
    assert ": last trial lower than first, by" in losing
    sign = np.array([1, -1] * 5)
    level = series(np.stack([first, first + step * sign], axis=-1)[None])
    assert agent_statistics(level.returns).improves is None
    assert "no difference shown" in verdict(level, agent_statistics(level.returns))


def test_five_environments_are_too_few_for_a_verdict_however_alike_they_are():
    returns = np.stack([np.zeros(5), np.full(5, 100.0)], axis=-1)[None]
    statistics = agent_statistics(returns)
    assert statistics.gain.excludes_zero and statistics.improves is None
    assert "too few environments (5)" in verdict(series(returns), statistics)
    more = agent_statistics(np.concatenate([returns, returns], axis=1))
    assert more.improves is True


def test_one_trial_is_compared_with_nothing():
    one = series(np.ones((1, 8, 1)))
    statistics = agent_statistics(one.returns)
    assert math.isnan(statistics.gain.value) and statistics.improves is None
    assert "nothing to compare" in verdict(one, statistics)


def test_numbers_are_shown_with_the_decimals_that_they_deserve():
    assert show(Estimate(812.4, 790.2, 830.1)) == "812 [790, 830]"
    assert show(Estimate(1234.5, 1200.0, 1300.0)) == "1,234 [1,200, 1,300]"
    assert show(Estimate(-3.14159)) == "\u22123.14"
    assert show(Estimate(40.0, 31.5, 48.25), signed=True) == "+40.0 [+31.5, +48.2]"
    assert show(Estimate(-0.001, -0.002, 0.002)) == "0.00 [0.00, 0.00]"
    assert show(replace(Estimate(5.0, 1.0, 9.0), low=math.nan)) == "5.00"


def test_many_histories_are_summarised_together():
    def data(histories):
        returns = np.concatenate([np.arange(4.0) if each % 3 else -np.arange(4.0) for each in range(histories)])
        sources = tuple(SourceSummary(f"seed {each}", "ad_eps", 4) for each in range(histories))
        return DataSet("t", "d", "s", "", sources, returns, np.repeat(np.arange(histories), 4), 4 * histories)

    assert [name for name, *_ in trends(data(2))] == ["seed 0", "seed 1"]
    assert trends(data(30)) == [("30 histories", "ad_eps", 120, 1.0)]
