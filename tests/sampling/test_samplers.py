"""Every context sampler on a store of ten integers' size, its answer worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.batch import ContextPlan
from ringrl.errors import UserError
from ringrl.sampling.samplers import HindsightSampler, HistorySampler, WindowSampler, top_fraction
from tests.sampling.stores import floats, ints


def draws(sampler, count: int = 300) -> list[ContextPlan]:
    rng = np.random.default_rng(0)
    return [sampler.sample(rng) for _ in range(count)]


def test_windows_of_three_from_episodes_of_two_and_four_steps():
    plans = draws(WindowSampler(ints(2, 4), floats(5, 7), window=3))
    seen = {(int(p.episode[0]), int(p.start[0]), int(p.stop[0]), float(p.target[0])) for p in plans}
    # Episode 0 is shorter than a window; in episode 1 the window starts anywhere and ends where the episode does.
    assert seen == {(0, 0, 2, 5.0), (1, 0, 3, 7.0), (1, 1, 4, 7.0), (1, 2, 4, 7.0), (1, 3, 4, 7.0)}
    assert not any(p.completed.any() for p in plans)


def test_windows_draw_episodes_in_proportion_to_their_length():
    plans = draws(WindowSampler(ints(1, 9), floats(0, 0)), 1000)
    assert sum(int(p.episode[0]) for p in plans) == pytest.approx(900, abs=30)


def test_windows_without_a_size_are_whole_episodes_of_the_subset():
    plans = draws(WindowSampler(ints(2, 4, 3), floats(5, 7, 6), episodes=ints(2, 0)))
    assert {(int(p.episode[0]), int(p.start[0]), int(p.stop[0])) for p in plans} == {(0, 0, 2), (2, 0, 3)}


def test_windows_count_agent_steps_and_start_at_one():
    # Seven steps are the agent steps 0-1, 2-3, 4-5, 6; a window of two agent steps is four of them.
    plans = draws(WindowSampler(ints(7), floats(1), window=2, action_repeat=2))
    assert {(int(p.start[0]), int(p.stop[0])) for p in plans} == {(0, 4), (2, 6), (4, 7), (6, 7)}


def test_top_fraction_counts_time_steps():
    # Best first the episodes have 2, 3, 1 and 4 of the 10 steps; half of the steps are those of the first two.
    lengths, returns = ints(4, 3, 2, 1), floats(1, 8, 9, 5)
    assert top_fraction(lengths, returns, 0.5).tolist() == [2, 1]
    assert top_fraction(lengths, returns, 0.1).tolist() == [2], "the best is always there"
    assert top_fraction(lengths, returns, 1.0).tolist() == [2, 1, 3, 0]
    with pytest.raises(UserError, match="fraction=10"):
        top_fraction(lengths, returns, 10.0)


def test_ascending_sorts_and_targets_the_maximum():
    lengths, returns = ints(3, 1, 2, 5), floats(4, 9, 2, 9)
    chain = HindsightSampler(lengths, returns, trajectories=4).sample(np.random.default_rng(0))
    assert returns[chain.episode].tolist() == [2, 4, 9, 9]
    assert chain.target.tolist() == [9, 9, 9, 9]
    assert chain.completed.tolist() == [False, False, True, True]
    assert chain.start.tolist() == [0, 0, 0, 0]
    assert chain.stop.tolist() == lengths[chain.episode].tolist()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(0, 99), st.data())
def test_a_chain_of_hindsight_is_sorted_and_has_one_target(returns, seed, data):
    count = data.draw(st.integers(1, len(returns)))
    draw = data.draw(st.sampled_from(["uniform", "stratified"]))
    scores = floats(*returns)
    sampler = HindsightSampler(np.ones(len(returns), np.int64), scores, count, draw=draw)
    chain = sampler.sample(np.random.default_rng(seed))
    assert len(set(chain.episode.tolist())) == count
    assert (np.diff(scores[chain.episode]) >= 0).all()
    assert (chain.target == scores[chain.episode].max()).all()
    assert (chain.completed == (scores[chain.episode] == chain.target)).all()


def test_ascending_stratified_takes_one_of_each_band():
    # Ranked by return the episodes are 4 3 | 2 1 | 0.
    sampler = HindsightSampler(np.ones(5, np.int64), floats(50, 40, 30, 20, 10), trajectories=3, draw="stratified")
    assert {tuple(p.episode.tolist()) for p in draws(sampler, 100)} == {
        (low, middle, 0) for low in (4, 3) for middle in (2, 1)
    }


def test_ascending_needs_enough_episodes():
    with pytest.raises(UserError, match="4 trajectories cannot be drawn from 3 episodes"):
        HindsightSampler(ints(1, 1, 1), floats(1, 2, 3), trajectories=4)
    with pytest.raises(UserError, match="no episodes"):
        WindowSampler(ints(), floats()).sample(np.random.default_rng(0))


def test_histories_keep_every_second_episode_of_one_source():
    # Source 0 wrote the episodes 0 2 4 5 6, source 1 the episodes 1 3 7; three of every second span five.
    source = np.array([0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 1], np.int32)
    ones = np.ones(11, np.int64)
    sampler = HistorySampler(ones, np.arange(11, dtype=np.float64), source, trajectories=3, every=2)
    # Source 0: 0 2 4 5 6 8 -> stretches from 0 and from 2. Source 1: 1 3 7 9 10 -> one stretch.
    assert {tuple(p.episode.tolist()) for p in draws(sampler)} == {(0, 4, 6), (2, 5, 8), (1, 7, 10)}
    assert draws(sampler, 1)[0].target.tolist() == draws(sampler, 1)[0].episode.tolist()


def test_histories_sorted_ranks_the_whole_history_first():
    sampler = HistorySampler(
        np.ones(4, np.int64), floats(3, 1, 4, 2), np.zeros(4, np.int32), trajectories=3, order="sorted"
    )
    assert {tuple(p.episode.tolist()) for p in draws(sampler, 50)} == {(1, 3, 0), (3, 0, 2)}


def test_histories_too_short_say_what_to_do():
    with pytest.raises(UserError, match="source 5 has 2 episodes, and 2 trajectories of every 2 span 3; lower"):
        HistorySampler(np.ones(2, np.int64), floats(1, 2), np.full(2, 5, np.int32), trajectories=2, every=2)
    with pytest.raises(UserError, match="at least 1"):
        HistorySampler(np.ones(2, np.int64), floats(1, 2), np.full(2, 5, np.int32), trajectories=2, every=0)


def test_a_jittered_target_is_one_for_the_chain_and_stays_within_its_bounds():
    lengths, returns = np.full(10, 4, np.int64), np.arange(10, dtype=np.float64) * 10
    ascending = HindsightSampler(lengths, returns, 3, target_jitter=0.2)
    windows = WindowSampler(lengths, returns, target_jitter=0.2)
    rng = np.random.default_rng(0)
    factors = []
    for _ in range(200):
        plan = ascending.sample(rng)
        assert (plan.target == plan.target[0]).all()
        assert plan.completed.tolist() == [False, False, True]  # the jitter moves the target, not who was best
        factors.append(plan.target[0] / returns[plan.episode].max())
        single = windows.sample(rng)
        assert abs(single.target[0] - returns[single.episode[0]]) <= 0.2 * returns[single.episode[0]] + 1e-9
    assert 0.8 <= min(factors) < 0.85 and 1.15 < max(factors) <= 1.2


def test_a_chain_of_hindsight_stays_within_a_source():
    returns = np.array([3.0, 9.0, 1.0, 8.0, 2.0, 7.0, 4.0])
    source = np.array([0, 1, 0, 1, 0, 1, 0], np.int32)
    for draw in ("uniform", "stratified"):
        sampler = HindsightSampler(np.full(7, 5), returns, 3, draw=draw, source=source)
        plans = [sampler.sample(np.random.default_rng(seed)) for seed in range(40)]
        chains = {tuple(plan.episode.tolist()) for plan in plans}
        assert all(len(set(source[list(chain)])) == 1 for chain in chains)
        assert (5, 3, 1) in chains and any(source[chain[0]] == 0 for chain in chains)
        assert all(plan.target[0] == returns[plan.episode].max() for plan in plans)


def test_a_source_must_have_a_whole_chain():
    with pytest.raises(UserError, match="3 trajectories cannot be drawn from 2 episodes"):
        HindsightSampler(np.full(5, 5), np.arange(5.0), 3, source=np.array([0, 0, 0, 1, 1], np.int32))
