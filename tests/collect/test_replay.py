"""The replay, on episodes of a few numbers that can be checked by eye."""

import numpy as np

from ringrl.collect.replay import Replay


def make(capacity, *, batch=4, gamma=1.0, n_step=1):
    return Replay(capacity, 1, 1, batch=batch, gamma=gamma, n_step=n_step)


def test_n_steps_are_summed_and_stop_at_the_episode_end():
    replay = make(8, gamma=0.5, n_step=3)
    observation = np.arange(5, dtype=np.float32)[:, None]
    action = np.zeros((4, 1), np.float32)
    replay.add_episode(observation, action, np.float32([1, 2, 4, 8]), np.float32([1, 1, 1, 0]))
    stored = [rows[:4] for rows in replay._rows]
    np.testing.assert_array_equal(stored[2], [1 + 2 / 2 + 4 / 4, 2 + 4 / 2 + 8 / 4, 4 + 8 / 2, 8])
    np.testing.assert_array_equal(stored[3], [0.125, 0, 0, 0])  # gamma^3; then the real end
    np.testing.assert_array_equal(stored[4][:, 0], [3, 4, 4, 4])


def two_episodes():
    replay = make(5, batch=64)
    for start in (0, 10):
        observation = start + np.arange(4, dtype=np.float32)[:, None]
        replay.add_episode(observation, observation[:-1] / 20, observation[1:, 0], np.ones(3, np.float32))
    return replay


def test_the_oldest_leave_and_what_is_sampled_belongs_together():
    replay = two_episodes()
    assert replay.size == 5
    batch = replay.sample(2, np.random.default_rng(0))
    assert batch.observation.shape == (2, 64, 1) and batch.reward.shape == (2, 64)
    assert set(np.unique(batch.observation)) == {1, 2, 10, 11, 12}  # 0 gave way
    np.testing.assert_array_equal(batch.next_observation, batch.observation + 1)
    np.testing.assert_array_equal(batch.reward, batch.next_observation[..., 0])
    np.testing.assert_allclose(batch.action, batch.observation / 20)


def test_a_gradient_steps_minibatch_is_the_same_in_whichever_call_it_is():
    replay = two_episodes()
    together = replay.sample_steps(3, 7, seed=0).observation
    apart = [replay.sample_steps(start, start + 2, seed=0).observation for start in (3, 5)]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    assert len({step.tobytes() for step in np.asarray(together)}) == 4
    assert not np.array_equal(together, replay.sample_steps(3, 7, seed=1).observation)


def test_episodes_shorter_than_n_steps_and_longer_than_the_replay_are_stored():
    replay = make(3, n_step=5)
    for steps in (2, 7):
        ones = np.ones(steps, np.float32)
        replay.add_episode(np.arange(steps + 1, dtype=np.float32)[:, None], ones[:, None], ones, ones)
    assert replay.size == 3
    assert set(replay._rows[0][:, 0]) == {4, 5, 6}
