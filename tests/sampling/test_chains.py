"""Chains read from a store of ten integers' size, worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.episode import Episode, StepSpan
from ringrl.errors import UserError
from ringrl.sampling.chains import agent_steps, build_chain
from ringrl.sampling.samplers import WindowSampler
from ringrl.store.episode_store import DataSource, build, open_store
from tests.sampling.families import toy_episodes
from tests.sampling.stores import NumberedStore, plan


def test_build_chain_joins_two_episodes():
    store = NumberedStore([[1, 2], [3, 0, 4]])
    chain = build_chain(store, plan([0, 1], [0, 0], [2, 3], [7, 7], [False, True]), "any")
    assert chain.observation.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert chain.reward.tolist() == [1, 2, 3, 0, 4]
    assert chain.return_to_go.tolist() == [7, 6, 7, 4, 4]
    assert chain.completion.tolist() == [0, 0, 0, 0, 1]
    assert chain.step.tolist() == [0, 1, 0, 1, 2]
    assert chain.trial.tolist() == [0, 0, 1, 1, 1]
    assert chain.length == 5


def test_build_chain_inside_an_episode_counts_the_earlier_rewards():
    store = NumberedStore([[5, 1, 2, 3, 4]])
    chain = build_chain(store, plan([0], [2], [4], [15], [True]), "any")
    assert chain.return_to_go.tolist() == [9, 7]
    assert chain.step.tolist() == [2, 3]
    assert chain.completion.tolist() == [0, 0], "the piece does not reach the episode's end"


def test_build_chain_sums_rewards_over_an_action_repeat():
    store = NumberedStore([[1, 2, 3, 4, 5]])
    pieces = plan([0], [2], [5], [15], [True])
    assert agent_steps(pieces, 2).tolist() == [2]
    chain = build_chain(store, pieces, "any", action_repeat=2)
    assert chain.observation[:, 1].tolist() == [2, 4]
    np.testing.assert_allclose(chain.action[:, 0], [0.25, 0.4], rtol=1e-6)
    assert chain.reward.tolist() == [7, 5]
    assert chain.return_to_go.tolist() == [12, 5]
    assert chain.step.tolist() == [1, 2]
    assert chain.completion.tolist() == [0, 1]
    with pytest.raises(UserError, match="multiples of action_repeat=2"):
        build_chain(store, plan([0], [1], [5], [15], [True]), "any", action_repeat=2)


def test_with_a_horizon_a_return_to_go_is_a_mean_reward_as_a_whole_return():
    """Rewards 5 1 2 3 4, two steps ahead: 6 3 5 7 in two, and at the end 4 in one; five steps at that rate."""
    store = NumberedStore([[5, 1, 2, 3, 4]])
    whole = build_chain(store, plan([0], [0], [5], [15], [True], horizon=2), "any")
    assert whole.return_to_go.tolist() == [15, 7.5, 12.5, 17.5, 20]
    assert whole.reward.tolist() == [5, 1, 2, 3, 4] and whole.completion.tolist() == [0, 0, 0, 0, 1]
    piece = build_chain(store, plan([0], [1], [3], [15], [True], horizon=2), "any")
    assert piece.return_to_go.tolist() == [7.5, 12.5], "it looks beyond the piece's end"
    assert piece.observation[:, 1].tolist() == [1, 2] and piece.reward.tolist() == [1, 2]
    assert len(piece.action) == piece.length == 2 and not piece.completion.any()
    # Episodes of all lengths have the unit of the store's longest.
    both = NumberedStore([[5, 1, 2, 3, 4], [2, 2]])
    assert build_chain(both, plan([1], [0], [2], [4], [True], horizon=2), "any").return_to_go.tolist() == [10, 10]
    # Two steps an agent step: 6 5 4; one ahead 6 5 4; three agent steps at that rate.
    repeated = build_chain(store, plan([0], [2], [5], [15], [True], horizon=1), "any", action_repeat=2)
    assert repeated.return_to_go.tolist() == [15, 12] and repeated.reward.tolist() == [5, 4]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=12), st.integers(1, 14), st.data())
def test_returns_over_a_horizon_do_not_depend_on_where_a_piece_is_cut(rewards, horizon, data):
    start = data.draw(st.integers(0, len(rewards) - 1))
    stop = data.draw(st.integers(start + 1, len(rewards)))
    store = NumberedStore([rewards])
    whole = build_chain(store, plan([0], [0], [len(rewards)], [0], [False], horizon=horizon), "any")
    piece = build_chain(store, plan([0], [start], [stop], [0], [False], horizon=horizon), "any")
    assert (piece.return_to_go == whole.return_to_go[start:stop]).all()


def test_a_repeated_action_survives_an_action_repeat_to_the_bit():
    store = NumberedStore([[0] * 6])
    repeated = np.float32(0.1)
    store._steps = lambda episode, start, stop: StepSpan(
        observation=np.zeros((stop - start + 1, 1), np.float32),
        action=np.full((stop - start, 1), repeated),
        reward=np.zeros(stop - start, np.float32),
        discount=np.ones(stop - start, np.float32),
        earlier=np.zeros(start, np.float32),
    )
    chain = build_chain(store, plan([0], [0], [6], [0], [False]), "any", action_repeat=3)
    assert (chain.action == repeated).all()


def test_a_chain_from_a_store_on_disk(tmp_path):
    rows = np.arange(5, dtype=np.float32)
    episode = Episode(
        observation=rows[:, None] * 10,
        action=rows[1:, None] / 10,
        reward=rows[1:, None],
        discount=np.ones(4, np.float32),
        physics=np.zeros((5, 2)),
    )
    build(
        tmp_path / "store",
        [(episode, 0)],
        domain="any",
        tasks=["any_task"],
        sources=[DataSource("any", "any")],
        provenance={},
    )
    store = open_store(tmp_path / "store")
    sampler = WindowSampler(store.lengths, store.returns("any_task"))
    chain = build_chain(store, sampler.sample(np.random.default_rng(0)), "any_task")
    assert chain.observation.ravel().tolist() == [0, 10, 20, 30]
    np.testing.assert_allclose(chain.action.ravel(), [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert chain.reward.tolist() == [1, 2, 3, 4]
    assert chain.return_to_go.tolist() == [10, 9, 7, 4]
    inside = build_chain(store, plan([0], [2], [4], [10], [True]), "any_task")
    assert inside.return_to_go.tolist() == [7, 4]
    assert inside.completion.tolist() == [0, 1]


def test_a_chain_has_what_a_demonstrator_would_have_done_first_in_each_agent_step(tmp_path):
    def episode(first: int, steps: int) -> Episode:
        shown = np.arange(first, first + steps)[:, None] / 10
        zeros = np.zeros((steps + 1, 1))
        return Episode.from_arrays(zeros, zeros[1:], zeros[1:], terminated=False, demonstrator=shown)

    store = open_store(build(tmp_path / "s", [episode(0, 5), episode(5, 4)], domain="any"))
    pieces = plan([1, 0], [0, 2], [4, 5], [0, 0], [False, False])
    chain = build_chain(store, pieces, "any", action_repeat=2, demonstrator=True)
    np.testing.assert_allclose(chain.demonstrator.ravel(), [0.5, 0.7, 0.2, 0.4])  # of 0.5 to 0.8, and 0.2 to 0.4
    ahead = plan([0], [0], [2], [0], [False], horizon=3)  # reads more than is in the chain
    chain = build_chain(store, ahead, "any", demonstrator=True)
    np.testing.assert_allclose(chain.demonstrator.ravel(), [0, 0.1])
    assert build_chain(store, pieces, "any", action_repeat=2).demonstrator is None
    paid_by_members = toy_episodes(tmp_path / "toy", [[0, 1, 2]])
    with pytest.raises(UserError, match="of a store's own task, and these rewards are drawn members'"):
        build_chain(paid_by_members, plan([0], [0], [2], [0], [False]), "hidden_toy_place", demonstrator=True)
