"""Transitions paid by drawn members, on episodes along a line whose rewards can be checked by hand."""

import numpy as np
import pytest

from ringrl.collect.member_replay import MemberReplay
from ringrl.collect.replay import Replay
from ringrl.envs import family_of
from ringrl.episode import Episode
from ringrl.sampling.chains import by_agent_step, rewards_by_agent_step
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.store.episode_store import build, open_store

TASK = "visible_point_mass_goal_30mm"  # 1 within 30 mm of the goal, a tenth at 60 mm
FAMILY = family_of(TASK)
SCALES = Normalizer(np.zeros(6, np.float32), np.float32([1, 1, 1, 1, 0.5, 0.25]), 1.0, 1.0)


def line(x, discount=None):
    """An episode along x, in whose observation the place is the first number."""
    rows = np.zeros((len(x), 4))
    rows[:, 0] = x
    steps = len(x) - 1
    ones = np.ones(steps, np.float32)
    return Episode(
        rows.astype(np.float32),
        np.linspace(0, 1, 2 * steps, dtype=np.float32).reshape(steps, 2),
        np.zeros((steps, 1), np.float32),
        ones if discount is None else np.float32(discount),
        rows,
    )


def position(episode):
    return episode.observation[:, :2]


def make_episodes(path, episodes, share=0.5):
    what = {"domain": "point_mass", "tasks": ("point_mass_easy",), "features": {FAMILY.name: position}}
    return RelabelledEpisodes(
        open_store(build(path / "s", episodes, **what)), FAMILY, visible=True, hindsight_share=share
    )


def fill(episodes, replay, repeat):
    for steps in episodes.read_many([(e, 0, int(n)) for e, n in enumerate(episodes.lengths)], TASK):
        observation = np.concatenate([by_agent_step(steps, repeat)[0], steps.observation[-1:]])
        discount = np.multiply.reduceat(steps.discount, np.arange(0, len(steps.discount), repeat))
        reward = rewards_by_agent_step(steps, repeat)[0].astype(np.float32)
        replay.add_episode(SCALES.normalize_observation(observation), by_agent_step(steps, repeat)[1], reward, discount)
    return replay


def plain(episodes, repeat, **options):
    capacity = int((-(-episodes.lengths // repeat)).sum())
    return Replay(capacity, 6, 2, **{"batch": 512, "gamma": 0.5, "n_step": 1} | options)


def replay_of(episodes, repeat=1, **options):
    return fill(episodes, MemberReplay(plain(episodes, repeat, **options), episodes, SCALES, repeat), repeat)


def test_rewards_and_observations_are_those_of_the_member(tmp_path):
    """A goal at 90 mm pays a tenth at 30 mm, and 1 at 60, 90 and 120 mm: two agent steps of 0.1 + 1 and 1 + 1."""
    episodes = make_episodes(tmp_path, [line([0.0, 0.03, 0.06, 0.09, 0.12]), line([-0.2, 0.09, 0.15, 0.2])])
    replay = replay_of(episodes, repeat=2, n_step=2)
    goals = np.tile(np.float32([0.09, 0.01]), (4, 1))
    goals[:, 1] = 0
    found = replay.relabelled(np.arange(4), goals)
    np.testing.assert_allclose(found.reward, [1.1 + 2 / 2, 2, 1.1 + 0, 0], atol=1e-4)
    np.testing.assert_array_equal(found.discount, [0.25, 0.5, 0.25, 0.5])  # a time limit is not an end
    np.testing.assert_allclose(found.observation[:, 0], [0, 0.06, -0.2, 0.15])
    np.testing.assert_allclose(found.next_observation[:, 0], [0.12, 0.12, 0.2, 0.2])
    for observation in (found.observation, found.next_observation):
        np.testing.assert_allclose(observation[:, 4:], [[0.18, 0.0]] * 4, rtol=1e-6)
    np.testing.assert_array_equal(found.action[0], episodes.store.episode(0, "point_mass_easy").action[:2].mean(0))


def walks(rng, discount=None):
    steps = rng.integers(3, 12, size=6)
    return [line(np.cumsum(rng.normal(0, 0.03, size=n + 1)), discount) for n in steps]


@pytest.mark.parametrize(("repeat", "n_step"), [(1, 1), (1, 3), (4, 1), (3, 3), (2, 20)])
def test_the_members_of_contexts_are_paid_as_contexts_are_to_the_bit(repeat, n_step, tmp_path):
    episodes = make_episodes(tmp_path, [*walks(np.random.default_rng(0)), line([0, 0.01, 0.02, 0.03], [1, 1, 0])])
    expected = fill(episodes, plain(episodes, repeat, n_step=n_step), repeat)
    number = np.repeat(np.arange(7), -(-episodes.lengths // repeat))
    found = replay_of(episodes, repeat, n_step=n_step).relabelled(np.arange(len(number)), episodes.drawn[number])
    for got, want in zip(found, expected.take(np.arange(len(number))), strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_rewards_of_members_are_scaled_to_one_average_over_the_data(tmp_path):
    """So every reward of a member is multiplied by one number: 0.1 over its average and a hundredth."""
    episodes = make_episodes(tmp_path, walks(np.random.default_rng(2)))
    scaled = MemberReplay(plain(episodes, 1), episodes, SCALES, 1, scale_members=True)
    index = np.arange(int(episodes.lengths.sum()))
    member = np.tile(np.float32([0.02, 0.0]), (len(index), 1))
    paid = replay_of(episodes).relabelled(index, member).reward
    found = fill(episodes, scaled, 1).relabelled(index, member).reward
    average = FAMILY.reward(scaled._states, member[:1]).mean()
    assert len(scaled._states) == 64 and 0 < average < 1
    np.testing.assert_allclose(found, paid * 0.1 / (0.01 + average), rtol=1e-5)


def test_a_minibatch_is_a_function_of_seed_and_step_and_its_rewards_the_familys(tmp_path):
    episodes = make_episodes(tmp_path, walks(np.random.default_rng(1)))
    replay = replay_of(episodes, batch=64)
    together = replay.sample_steps(48, 52, seed=0)  # of two blocks of steps that are drawn together
    for step in range(48, 52):
        alone = replay.sample_steps(step, step + 1, seed=0)
        for whole, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(whole[step - 48], one[0])
    assert not np.array_equal(together.observation, replay.sample_steps(48, 52, seed=1).observation)
    members = np.asarray(together.observation[..., 4:]) * SCALES.observation_std[4:]  # halves and quarters: exact
    paid = FAMILY.reward(np.asarray(together.next_observation[..., :2]), members)
    np.testing.assert_array_equal(together.reward, paid)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_members_pay_at_a_later_state_of_the_episode(share, tmp_path):
    """Every place of an episode that never stays is another, so a goal tells which one it was taken from."""
    episodes = make_episodes(tmp_path, [line(np.arange(n) / 50 + start) for n, start in ((6, 0), (4, 0.13))], share)
    batches = replay_of(episodes).sample_steps(0, 8, seed=0)
    place = np.asarray(batches.observation[..., 0]).ravel()
    goal = (np.asarray(batches.observation[..., 4:]) * SCALES.observation_std[4:]).reshape(-1, 2)
    ahead = np.round((goal[:, 0] - place) * 50)
    taken = goal[:, 1] == 0.0
    assert abs(taken.mean() - share) < 0.03
    for begin, left in ((0.0, 5), (0.04, 3), (0.13, 3)):
        counts = np.bincount(ahead[taken & (np.abs(place - begin) < 1e-4)].astype(int), minlength=left + 1)
        assert counts[0] == 0 and len(counts) == left + 1  # none of the present, none beyond the episode
        if share == 1.0:
            np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / left, atol=0.06)


def test_where_no_goal_pays_in_a_state_another_state_is_taken(tmp_path):
    """Two of three later states are beyond the arena, where no goal pays: as in contexts, the third one is the goal."""
    episodes = make_episodes(tmp_path, [line([0.0, 0.5, 0.5, 0.1])], share=1.0)
    batches = replay_of(episodes).sample_steps(0, 2, seed=0)
    goals = (np.asarray(batches.observation[..., 4:]) * SCALES.observation_std[4:]).reshape(-1, 2)
    assert (goals == np.float32([0.1, 0.0])).all(axis=1).mean() > 0.9  # at random it would be a third
    of_contexts = episodes.hindsight(np.random.default_rng(0), np.zeros(1000, np.int64))
    assert (of_contexts == np.float32([0.1, 0.0])).all(axis=1).mean() > 0.9
