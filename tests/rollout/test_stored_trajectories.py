"""Trajectories of a family of rewards: drawn for each environment, paid by its member, shown as training shows them."""

import numpy as np
import pytest

from ringrl.batch import BATCH_SCHEMA, ContextPlan
from ringrl.envs import HELD_OUT, family_of, make_env
from ringrl.envs.custom.library import CUE
from ringrl.errors import UserError
from ringrl.policy import RolloutSpec
from ringrl.rollout.demonstrations import ContextForm
from ringrl.rollout.stored_trajectories import ContextDraw, StoredTrajectories
from ringrl.sampling.batches import LocalPositions, StepPlacement, assemble
from ringrl.sampling.chains import build_chain
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import RelabelledEpisodes
from tests.rollout.reward_free import FAMILY, HIDDEN, VISIBLE, reward_free_store

GOALS = family_of(HIDDEN)
assert GOALS is not None
SCALES = Normalizer(np.arange(4, dtype=np.float32), np.full(4, 2, np.float32), return_scale=40.0, reward_scale=0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return reward_free_store(tmp_path_factory.mktemp("reward_free") / "point_mass.store")


def form(sizes=4, scales=SCALES, **spec) -> ContextForm:
    return ContextForm(RolloutSpec(1000, **spec), scales, {"observation": sizes, "action": 2}, 4)


def drawn(store, count, envs=3, order="random", task=HIDDEN, seed=HELD_OUT, **options) -> StoredTrajectories:
    return StoredTrajectories(store, task, form(**options), ContextDraw(count, envs, seed, order))


def in_training(reader, episodes, returns, member) -> dict[str, np.ndarray]:
    """The row that training makes of whole trajectories of one member."""
    plan = ContextPlan(
        episodes,
        np.zeros_like(episodes),
        reader.lengths[episodes],
        returns,
        np.zeros(len(episodes), bool),
        parameter=np.tile(member, (len(episodes), 1)),
    )
    chain = build_chain(reader, plan, HIDDEN, action_repeat=4)
    at = np.arange(chain.length)
    placed = StepPlacement(at * 0, at, at * 0 + 1, at * 0, chain.trial.astype(np.int64))
    batch = assemble(chain, placed, 1, LocalPositions(at), SCALES)
    return {name: value[0] for name, value in batch.asdict().items()}


@pytest.mark.parametrize("order", ["random", "ascending"])
def test_contexts_are_what_training_shows_of_the_member(store, order):
    reader, shown = RelabelledEpisodes(store, GOALS), drawn(store, 4, order=order).first(3)
    assert shown.returns.shape == (3, 3)
    for env in range(3):
        episodes = np.random.default_rng((HELD_OUT + env, 11)).permutation(8)[:3]
        member = GOALS.member(HELD_OUT + env)
        returns = reader.returns_under(episodes, np.tile(member, (3, 1)))
        if order == "ascending":
            ranked = np.argsort(returns, kind="stable")
            episodes, returns = episodes[ranked], returns[ranked]
        np.testing.assert_array_equal(shown.returns[env], returns)
        row, context = in_training(reader, episodes, returns, member), shown.of(env, 1)[0]
        assert set(context) == set(BATCH_SCHEMA)
        for name, value in context.items():
            np.testing.assert_array_equal(value, row[name], err_msg=name)


def test_the_environment_itself_pays_the_same(store):
    """A trajectory of the store, with its first state and its actions, in the environment of the member."""
    shown = drawn(store, 8, envs=8)
    paid = int(shown.first(8).returns.sum(axis=1).argmax())
    env, given = make_env(HIDDEN, seed=HELD_OUT + paid), shown._contexts[paid]
    env.reset()
    for index, found in zip(given.episodes, given.returns, strict=True):
        episode, rewards = store.episode(int(index), "point_mass_easy"), []
        for state, action in zip(episode.physics[1:], episode.action, strict=True):
            env.set_state(state, action)
            rewards.append(env.task.get_reward(env.physics))
        assert np.asarray(rewards, np.float32).sum(dtype=np.float64) == found
    assert given.returns.any()


def test_of_a_library_each_trajectory_is_of_one_of_the_environments_members(store):
    """Its cue and its rewards are those of the environment's trials of that member; which one is drawn for each."""
    task, wide = "library3_point_mass_goal_30mm", 4 + CUE
    scales = Normalizer(np.zeros(wide, np.float32), np.ones(wide, np.float32), 1.0, 1.0)
    shown, members = drawn(store, 8, envs=8, task=task, sizes=wide, scales=scales), set()
    for i, (context, given) in enumerate(zip(shown.first(8).fields, shown._contexts, strict=True)):
        env = make_env(task, seed=HELD_OUT + i)
        env.reset()
        for index, episode in enumerate(given.episodes.tolist()):
            cue = context["observation"][context["trial"] == index, 4:]
            env.task.hidden = env.task.library[(env.task.library[:, :CUE] == cue[0]).all(axis=1).argmax()]
            np.testing.assert_array_equal(cue, np.tile(env.task.hidden[:CUE], (len(cue), 1)))
            members.add((i, *env.task.hidden))
            recorded, rewards = store.episode(episode, "point_mass_easy"), []
            for state, action in zip(recorded.physics[1:], recorded.action, strict=True):
                env.set_state(state, action)
                rewards.append(env.task.get_reward(env.physics))
            assert np.asarray(rewards, np.float32).sum(dtype=np.float64) == given.returns[index]
    assert 16 < len(members) <= 24 and any(given.returns.any() for given in shown._contexts)
    few, sorted_ones = shown.first(3), drawn(store, 8, 8, "ascending", task, sizes=wide, scales=scales).first(8)
    np.testing.assert_array_equal(few.returns, shown.first(8).returns[:, :3])
    for row, (one, other) in enumerate(zip(sorted_ones.fields, shown.first(8).fields, strict=True)):
        ranked = np.argsort(shown.first(8).returns[row], kind="stable")
        cues = [other["observation"][other["trial"] == index, 4:] for index in ranked]
        np.testing.assert_array_equal(one["observation"][:, 4:], np.concatenate(cues))


def test_environments_are_shown_different_trajectories_and_fewer_are_among_more(store):
    shown = drawn(store, 8, envs=6)
    few, many = shown.first(2), shown.first(8)
    np.testing.assert_array_equal(few.returns, many.returns[:, :2])
    firsts = {each["observation"].tobytes() for each in drawn(store, 1, envs=6).first(1).fields}
    assert len(firsts) > 2
    assert all((np.sort(each.episodes) == np.arange(8)).all() for each in shown._contexts)
    alone = StoredTrajectories(store, HIDDEN, form(), ContextDraw(8, 2, HELD_OUT + 2, "random"))
    np.testing.assert_array_equal(alone.first(8).returns, many.returns[2:4])  # an environment's draw is its seed's


def test_one_task_may_be_shown_apart_or_together(store):
    """Of the domain's own task: the same trajectories for all, or those that a member of each seed would be shown."""
    scales, task = form(), "point_mass_easy"
    together = StoredTrajectories(store, task, scales, ContextDraw(3, 4, HELD_OUT, "random")).first(3)
    assert together.returns.shape == (1, 3)
    apart = StoredTrajectories(store, task, scales, ContextDraw(3, 4, HELD_OUT, "random", apart=True))
    members = drawn(store, 3, envs=4)
    for each, other in zip(apart._contexts, members._contexts, strict=True):
        np.testing.assert_array_equal(each.episodes, other.episodes)
        np.testing.assert_array_equal(each.returns, store.returns(task)[each.episodes])
    assert len(apart.first(3).of(1, 2)) == 2
    with pytest.raises(UserError, match="--apart: .* has no rewards of point_mass_hard"):
        StoredTrajectories(store, "point_mass_hard", scales, ContextDraw(3, 4, HELD_OUT, "random", apart=True))


def test_steps_are_those_of_each_context(store):
    shown = drawn(store, 5, envs=2)
    assert shown.steps.tolist() == [[6] * 5] * 2  # 22 environment steps, 4 in each agent step
    assert shown.first(5).lengths.tolist() == shown.steps.tolist()


def test_visible_members_are_seen(store):
    scales = Normalizer(np.zeros(6, np.float32), np.ones(6, np.float32), 1.0, 1.0)
    shown = drawn(store, 2, task=VISIBLE, sizes=6, scales=scales).first(2)
    for env, fields in enumerate(shown.fields):
        member = GOALS.member(HELD_OUT + env)
        np.testing.assert_array_equal(fields["observation"][:, 4:], np.tile(member, (len(fields["step"]), 1)))


def test_what_cannot_be_shown_is_refused_in_a_line(store, tmp_path):
    with pytest.raises(UserError, match="has 8; give 1 to 8"):
        drawn(store, 9)
    with pytest.raises(UserError, match="observation has 6 numbers, the agent was trained on 4"):
        drawn(store, 2, task=VISIBLE)
    with pytest.raises(UserError, match="build it with `--families point_mass_goal_10mm`"):
        drawn(store, 2, task="hidden_point_mass_goal_10mm")
    bare = reward_free_store(tmp_path / "bare.store", 2, features=False)
    with pytest.raises(UserError, match=f"has no features of {FAMILY}"):
        drawn(bare, 2)
    with pytest.raises(UserError, match=r"store is of point_mass, and .* of hidden_reacher"):
        drawn(store, 2, task="hidden_reacher_target")
