"""One episode in environment steps, as files contain it, and in agent steps, as a learner sees it."""

import numpy as np

from ringrl import envs
from ringrl.collect.record import record_episode


def test_agent_steps_and_environment_steps():
    env = envs.make_env("cartpole_swingup", seed=3, action_repeat=3)  # 1000 = 333 * 3 + 1
    rng, seen = np.random.default_rng(0), []

    def act(observation):
        seen.append(observation)
        return rng.uniform(-1, 1, 1).astype(np.float32)

    episode, agent_steps = record_episode(env, act)
    assert episode.length == 1000 and len(agent_steps.action) == len(seen) == 334
    np.testing.assert_array_equal(agent_steps.observation[:-1], episode.observation[:-1:3])
    np.testing.assert_array_equal(agent_steps.observation[:-1], np.stack(seen))
    np.testing.assert_array_equal(agent_steps.observation[-1], episode.observation[-1])
    np.testing.assert_array_equal(episode.action, np.repeat(agent_steps.action, 3, axis=0)[:1000])
    sums = np.add.reduceat(episode.reward[:, 0], np.arange(0, 1000, 3))
    np.testing.assert_allclose(agent_steps.reward, sums, rtol=1e-6)
    assert (agent_steps.discount == 1).all() and (episode.discount == 1).all()  # a time limit is not an end


def test_the_first_observation_is_the_one_after_the_reset():
    env, twin = (envs.make_env("hidden_reacher_target", seed=4, action_repeat=5) for _ in range(2))
    episode, _ = record_episode(env, lambda _: np.ones(2, np.float32))
    observation, info = twin.reset()
    np.testing.assert_array_equal(episode.observation[0], observation)
    np.testing.assert_array_equal(episode.physics[0], info["physics"])
    assert episode.length == 125 and episode.reward.shape == (125, 1) and episode.observation.shape[0] == 126


def test_an_end_before_the_time_limit_stops_the_episode():
    env = envs.make_env("Hopper-v5", seed=0, action_repeat=4)  # it falls
    episode, agent_steps = record_episode(env, lambda _: np.ones(3, np.float32))
    assert episode.length < 1000 and agent_steps.discount[-1] == 0 == episode.discount[-1]
    assert (agent_steps.discount[:-1] == 1).all() and len(agent_steps.action) == -(-episode.length // 4)
