"""Demonstrations are shown as training shows trajectories, with the rewards of the task that is evaluated."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.agent import RolloutSpec
from ringrl.batch import BATCH_SCHEMA, Batch
from ringrl.collect.noisy_expert import Noise, noisy_history
from ringrl.collect.record import record_episode
from ringrl.envs import make_env
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.rollout.demonstrations import (
    ContextForm,
    EpisodeList,
    check_demonstrations,
    check_room,
)
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.chains import build_chain
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.samplers import HindsightSampler, HistorySampler
from ringrl.store.episode_store import DataSource, build, open_store

BALANCE, GOAL = "cartpole_balance", "hidden_point_mass_goal"
SIZES = {"observation": 5, "action": 1}
SCALES = Normalizer(np.arange(5, dtype=np.float32), np.full(5, 2, np.float32), return_scale=40.0, reward_scale=0.5)


def form(target: float | None = None, repeat: int = 4, **spec) -> ContextForm:
    return ContextForm(RolloutSpec(1000, target=target, **spec), SCALES, SIZES, repeat)


def in_training(store, plan, repeat: int = 4) -> Batch:
    """The row that training would make of a plan."""
    chain = build_chain(store, plan, BALANCE, action_repeat=repeat)
    slots = np.arange(chain.length)
    to = StepPlacement(slots * 0, slots, slots * 0 + 1, slots * 0, chain.trial.astype(np.int64))
    return assemble(chain, to, 1, LocalPositions(slots), SCALES)


def assert_same(shown: dict[str, np.ndarray], row: Batch) -> None:
    assert set(shown) == set(BATCH_SCHEMA)
    for name, value in row.asdict().items():
        np.testing.assert_array_equal(shown[name], value[0], err_msg=name)


@pytest.fixture(scope="module")
def store(tiny_store):
    return open_store(tiny_store)


def drawn(store, count: int, shown: ContextForm, order="ascending", **options) -> StoredTrajectories:
    return StoredTrajectories(store, BALANCE, shown, ContextDraw(count, 2, options.get("seed", 3), order))


def test_a_chain_of_hindsight_is_what_training_shows(store):
    """All of a store's episodes, with the best one's return as the target: there is one such chain."""
    returns = store.returns(BALANCE)
    sampler = HindsightSampler(store.lengths, returns, store.episodes)
    shown = drawn(store, store.episodes, form(target=float(returns.max()))).first(store.episodes)
    assert_same(shown.fields[0], in_training(store, sampler.sample(np.random.default_rng(0))))
    assert shown.fields[0]["completion"].sum() == 1
    np.testing.assert_array_equal(shown.returns[0], np.sort(returns))


def test_without_a_target_it_is_a_history_as_training_shows_it(store):
    """Episodes of one source, in its order; the returns-to-go are their own, which the agent does not see."""
    sampler = HistorySampler(store.lengths, store.returns(BALANCE), store.source, 4)
    plan = sampler.sample(np.random.default_rng(0))
    shown = form().show([store.episode(index, BALANCE) for index in plan.episode.tolist()])
    assert_same(shown.fields[0], in_training(store, plan))


def test_all_are_conditioned_on_the_target_and_complete_where_they_reach_it(store):
    returns = np.sort(store.returns(BALANCE))
    target = float(returns[5])
    fields = drawn(store, 8, form(target=target)).first(8).fields[0]
    first = fields["step"] == 0
    np.testing.assert_allclose(fields["return_to_go"][first], target / 40.0, rtol=1e-6)
    assert fields["completion"].sum() == 3  # of eight episodes, the three best have this return or more
    assert fields["trial"][fields["completion"] == 1].tolist() == [5, 6, 7]


def test_a_target_that_rewards_are_not_subtracted_from_is_that_of_every_step(store):
    fields = drawn(store, 3, form(target=20.0, subtract_rewards=False)).first(3).fields[0]
    assert (fields["return_to_go"] == 0.5).all()


def test_fewer_are_among_more_and_the_order_is_random_or_ascending(store):
    by_chance, ranked = (drawn(store, 6, form(), order) for order in ("random", "ascending"))
    few, many = by_chance.first(3).returns[0], by_chance.first(6).returns[0]
    np.testing.assert_array_equal(few, many[:3])
    np.testing.assert_array_equal(ranked.first(6).returns[0], np.sort(many))
    assert (np.diff(many) < 0).any()
    assert not np.array_equal(many, drawn(store, 6, form(), "random", seed=4).first(6).returns[0])
    assert by_chance.steps[0].tolist() == by_chance.first(6).lengths[0].tolist()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 8), seed=st.integers(0, 99), repeat=st.integers(1, 5))
def test_steps_are_counted_as_in_a_context(store, count, seed, repeat):
    shown = drawn(store, count, form(repeat=repeat), seed=seed).first(count)
    fields, lengths = shown.fields[0], shown.lengths[0]
    np.testing.assert_array_equal(fields["position"], np.arange(lengths.sum()))
    np.testing.assert_array_equal(fields["trial"], np.repeat(np.arange(count), lengths))
    np.testing.assert_array_equal(fields["step"], np.concatenate([np.arange(n) for n in lengths]))
    assert (fields["segment_ids"] == 1).all()
    expected = np.where(fields["step"][1:] > 0, fields["reward"][:-1], 0)
    np.testing.assert_array_equal(fields["previous_reward"], np.append(0, expected))


def test_missing_rewards_are_computed_from_the_physics(store, tmp_path):
    """The same trajectories in a store that has the rewards, and in one that has only those of another task."""
    episodes = [store.episode(index, "cartpole_swingup") for index in range(store.episodes)]
    other = build(
        tmp_path / "swingup.store",
        ((episode, 0) for episode in episodes),
        domain="cartpole",
        tasks=("cartpole_swingup",),
        sources=[DataSource("one", "one", "random")],
        provenance={},
    )
    shown = [drawn(each, 5, form(target=30.0)).first(5).fields for each in (store, open_store(other))]
    assert len(shown[0]) == len(shown[1]) == 1
    for name, value in shown[0][0].items():
        np.testing.assert_array_equal(shown[1][0][name], value, err_msg=name)


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """A store of two histories of hidden goals."""
    path = tmp_path_factory.mktemp("histories") / "goal.store"
    sources = [DataSource(str(seed), str(seed), "ad_eps") for seed in range(2)]
    episodes = ((each, seed) for seed in range(2) for each in noisy_history(GOAL, seed, 3, 25, Noise()))
    return open_store(build(path, episodes, domain="hidden_point_mass", tasks=(GOAL,), sources=sources, provenance={}))


def hidden_form(store) -> ContextForm:
    sizes = {"observation": store.dims.observation, "action": store.dims.action}
    scales = Normalizer(np.zeros(4, np.float32), np.ones(4, np.float32), return_scale=250.0, reward_scale=1.0)
    return ContextForm(RolloutSpec(1000), scales, sizes, 25)


def test_hidden_tasks_are_shown_the_same_trajectories_with_the_rewards_of_their_own(histories):
    draw = ContextDraw(4, 3, 1_000_000, "random")
    shown = StoredTrajectories(histories, GOAL, hidden_form(histories), draw).first(4)
    assert len(shown.fields) == 3 and shown.returns.shape == (3, 4)
    for fields in shown.fields[1:]:
        for name in ("observation", "action", "step", "trial", "position"):
            np.testing.assert_array_equal(fields[name], shown.fields[0][name])
        assert not np.allclose(fields["reward"], shown.fields[0]["reward"])
    episode = histories.episode(int(np.random.default_rng(1_000_000).permutation(6)[0]), GOAL)
    for env in range(3):
        live = replayed(episode, 1_000_000 + env)
        paid = live.reward[:, 0].astype(np.float64).reshape(-1, 25).sum(axis=1)
        np.testing.assert_allclose(shown.fields[env]["reward"][: len(paid)], paid, rtol=1e-6)


def replayed(episode: Episode, seed: int) -> Episode:
    """The rewards that the environment of a seed itself gives for an episode's states and actions."""
    env = make_env(GOAL, seed=seed)
    env.reset()
    rewards = []
    for state, action in zip(episode.physics[1:], episode.action, strict=True):
        env.set_state(state, action)
        rewards.append(env.task.get_reward(env.physics))
    return dataclasses.replace(episode, reward=np.asarray(rewards, np.float32)[:, None])


def test_each_hidden_task_has_its_own_ascending_order(histories):
    draw = ContextDraw(6, 4, 1_000_000, "ascending")
    shown = StoredTrajectories(histories, GOAL, hidden_form(histories), draw).first(6)
    assert (np.diff(shown.returns, axis=1) >= 0).all()
    assert len({fields["observation"].tobytes() for fields in shown.fields}) > 1


def without_physics(episode: Episode) -> Episode:
    return dataclasses.replace(episode, physics=np.zeros((episode.length + 1, 0)))


def test_what_cannot_be_demonstrated_is_refused_in_a_line(store, histories, tmp_path):
    with pytest.raises(UserError, match=r"--trajectories 9: .* has 8; give 1 to 8"):
        drawn(store, 9, form())
    wide = dataclasses.replace(form(), sizes={"observation": 6, "action": 1})
    with pytest.raises(UserError, match="observation has 5 numbers, the agent was trained on 6"):
        drawn(store, 2, wide)
    draw = ContextDraw(2, 1, 0, "random")
    with pytest.raises(UserError, match="is of hidden_point_mass, and hidden_reacher_target of hidden_reacher"):
        StoredTrajectories(histories, "hidden_reacher_target", hidden_form(histories), draw)
    with pytest.raises(UserError, match="the same action does not lead to the same state"):
        StoredTrajectories(histories, "hidden_point_mass_actuators", hidden_form(histories), draw)
    bare = [without_physics(store.episode(0, "cartpole_swingup"))]
    path = build(
        tmp_path / "bare.store",
        ((episode, 0) for episode in bare),
        domain="cartpole",
        tasks=("cartpole_swingup",),
        sources=[DataSource("one", "one", "random")],
        provenance={},
    )
    with pytest.raises(UserError, match="no rewards of cartpole_balance, and no physics states"):
        drawn(open_store(path), 1, form())


def test_visible_tasks_are_refused_for_their_observations_show_the_task(tmp_path):
    env = make_env("visible_point_mass_goal", time_limit=10)
    episode, _ = record_episode(env, lambda _: np.zeros(2, np.float32))
    task, sources = "visible_point_mass_goal", [DataSource("0", "0", "expert")]
    path = build(
        tmp_path / "s", [(episode, 0)], domain="visible_point_mass", tasks=(task,), sources=sources, provenance={}
    )
    scales = Normalizer(np.zeros(6, np.float32), np.ones(6, np.float32), 1.0, 1.0)
    shown = ContextForm(RolloutSpec(100), scales, {"observation": 6, "action": 2})
    with pytest.raises(UserError, match="their observations show the task"):
        StoredTrajectories(open_store(path), task, shown, ContextDraw(1, 1, 0, "random"))


def test_episodes_in_memory_are_checked(store):
    episode = store.episode(0, BALANCE)
    with pytest.raises(UserError, match="there are no episodes"):
        form().show([])
    with pytest.raises(UserError, match="episode 1 has 2 reward columns"):
        form().show([episode, dataclasses.replace(episode, reward=np.tile(episode.reward, (1, 2)))])
    narrow = dataclasses.replace(episode, observation=episode.observation[:, :4])
    with pytest.raises(UserError, match="episode 0: its observation has 4 numbers, the agent was trained on 5"):
        form().show([narrow])


def test_episodes_in_memory_are_sorted_only_if_asked(store):
    episodes = [store.episode(index, BALANCE) for index in (5, 0, 7)]
    as_given, ranked = form().show(episodes), form().show(episodes, "ascending")
    np.testing.assert_array_equal(as_given.returns[0], EpisodeList(episodes).returns(BALANCE))
    np.testing.assert_array_equal(ranked.returns[0], np.sort(as_given.returns[0]))


def test_an_agent_of_single_trials_and_a_short_context_are_refused():
    check_demonstrations("at", across_trials=True)
    with pytest.raises(UserError, match="bc's context is the present trial alone"):
        check_demonstrations("bc", across_trials=False)
    steps = np.array([[10, 12, 10], [10, 10, 12]], np.int64)
    check_room(steps, 42, 10)
    with pytest.raises(UserError, match=r"take a context of 42 steps, and this one is of 41; give at most .* 2, or"):
        check_room(steps, 41, 10)
    with pytest.raises(UserError, match=r"of 9; give a longer --context"):
        check_room(steps, 9, 10)
