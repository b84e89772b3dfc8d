"""Batches of environments in one process: seeds, partial resets, groups."""

import numpy as np
import pytest

from ringrl import envs
from ringrl.errors import UserError


def actions_for(vector, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, vector.action_space.shape).astype(np.float32)


def test_environments_are_seeded_one_by_one():
    vector = envs.make_vector("walker_walk", 3, seed=7)
    observation, _ = vector.reset()
    singles = [envs.make_env("walker_walk", seed=7 + index) for index in range(3)]
    np.testing.assert_array_equal(observation, np.stack([env.reset()[0] for env in singles]))
    actions = actions_for(vector)
    observation, reward, terminated, truncated, infos = vector.step(actions)
    steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
    np.testing.assert_array_equal(observation, np.stack([step[0] for step in steps]))
    np.testing.assert_array_equal(reward, [step[1] for step in steps])
    assert observation.dtype == np.float32 and reward.dtype == np.float64
    assert not terminated.any() and not truncated.any() and infos["length"].tolist() == [1, 1, 1]


def test_only_masked_environments_are_reset_and_repeats_may_differ_in_length():
    vector = envs.make_vector("cartpole_swingup", 2, action_repeat=600)
    first, _ = vector.reset(seed=0)
    zeros = np.zeros((2, 1), np.float32)
    after, *_ = vector.step(zeros)
    restarted, _ = vector.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(restarted[1], after[1])
    assert not np.array_equal(restarted[0], after[0])
    _, _, _, truncated, infos = vector.step(zeros)
    np.testing.assert_array_equal(truncated, [False, True])
    assert infos["length"].tolist() == [600, 400]


def test_environments_that_are_left_out_of_a_step_stay_as_they_are():
    vector, whole = (envs.make_vector("cheetah_run", 2, seed=3) for _ in range(2))
    before, _ = vector.reset()
    whole.reset()
    actions = actions_for(vector)
    vector.step_async(actions, np.array([False, True]))
    observation, reward, _, _, infos = vector.step_wait()
    np.testing.assert_array_equal(observation[0], before[0])
    assert reward[0] == 0.0 and infos["length"].tolist() == [0, 1]
    np.testing.assert_array_equal(observation[1], whole.step(actions)[0][1])


def test_with_restart_an_ended_episode_is_followed_by_the_next_at_once():
    restarting, waiting = (envs.make_vector("Hopper-v5", 3, seed=1) for _ in range(2))
    restarting.reset()
    waiting.reset()
    ends = 0
    for step in range(60):
        actions = actions_for(waiting, step)
        restarting.step_async(actions, restart=True)
        observation, *rest, infos = restarting.step_wait()
        expected, *expected_rest, expected_infos = waiting.step(actions)
        done = expected_rest[1] | expected_rest[2]
        if done.any():
            ends += 1
            expected, _ = waiting.reset(options={"reset_mask": done})
        np.testing.assert_array_equal(observation, expected)
        for one, other in zip(rest, expected_rest, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(infos["length"], expected_infos["length"])
    assert ends > 1


def test_groups_have_the_environments_of_one_vector_in_order():
    groups = envs.make_groups("cartpole_swingup", 5, seed=11, workers=0)
    assert [(group.first, group.num_envs) for group in groups] == [(0, 3), (3, 2)]
    together = envs.make_vector("cartpole_swingup", 5, seed=11)
    np.testing.assert_array_equal(np.concatenate([group.reset()[0] for group in groups]), together.reset()[0])
    actions = actions_for(together)
    parts = [group.step(actions[group.first :][: group.num_envs])[0] for group in groups]
    np.testing.assert_array_equal(np.concatenate(parts), together.step(actions)[0])
    assert len(envs.make_groups("cartpole_swingup", 1, groups=3, workers=0)) == 1


def test_the_expert_acts_in_each_environments_own_task():
    vector = envs.make_vector("hidden_point_mass_goal", 2, seed=5)
    vector.reset()
    expected = [env.task.expert(env.physics) for env in vector.envs]
    np.testing.assert_array_equal(vector.expert(), np.float32(expected))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: envs.make_vector("cartpole_swingup", 1, workers=-1), "workers is -1"),
        (lambda: envs.make_groups("cartpole_swingup", 0), "count is 0"),
        (lambda: envs.make_groups("cartpole_swingup", 1, groups=0), "groups is 0"),
        (lambda: envs.make_vector("cartpole_swingup", 1).expert(), "cartpole_swingup has no expert"),
        (lambda: envs.make_vector("cartpole_swingup", 2).step(np.zeros((2, 3), np.float32)), r"give \(2, 1\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
