"""One episode, as files hold it (a row a control step) and as a learner sees it (a row a decision)."""

import numpy as np

from ringrl import envs
from ringrl.collect.record import record_episode


def test_decisions_and_control_steps():
    env = envs.make_env("cartpole_swingup", seed=3, action_repeat=3)  # 1000 = 333 * 3 + 1
    rng, seen = np.random.default_rng(0), []

    def act(observation):
        seen.append(observation)
        return rng.uniform(-1, 1, 1).astype(np.float32)

    episode, decisions = record_episode(env, act)
    assert episode.length == 1000 and len(decisions.action) == len(seen) == 334
    np.testing.assert_array_equal(decisions.observation[:-1], episode.observation[:-1:3])
    np.testing.assert_array_equal(decisions.observation[:-1], np.stack(seen))
    np.testing.assert_array_equal(decisions.observation[-1], episode.observation[-1])
    np.testing.assert_array_equal(episode.action, np.repeat(decisions.action, 3, axis=0)[:1000])
    sums = np.add.reduceat(episode.reward[:, 0], np.arange(0, 1000, 3))
    np.testing.assert_allclose(decisions.reward, sums, rtol=1e-6)
    assert (decisions.discount == 1).all() and (episode.discount == 1).all()  # a time limit is not an end


def test_the_first_observation_is_the_one_after_the_reset():
    env, twin = (envs.make_env("hidden_reacher_target", seed=4, action_repeat=5) for _ in range(2))
    episode, _ = record_episode(env, lambda _: np.ones(2, np.float32))
    observation, info = twin.reset()
    np.testing.assert_array_equal(episode.observation[0], observation)
    np.testing.assert_array_equal(episode.physics[0], info["physics"])
    assert episode.length == 125 and episode.reward.shape == (125, 1) and episode.observation.shape[0] == 126


def test_an_end_before_the_time_limit_stops_the_episode():
    env = envs.make_env("Hopper-v5", seed=0, action_repeat=4)  # it falls
    episode, decisions = record_episode(env, lambda _: np.ones(3, np.float32))
    assert episode.length < 1000 and decisions.discount[-1] == 0 == episode.discount[-1]
    assert (decisions.discount[:-1] == 1).all() and len(decisions.action) == -(-episode.length // 4)
