"""Task vectors of contexts against sums by hand: two environments, two numbers an observation, which B leaves alone."""

import numpy as np
import pytest

from ringrl.config import EvaluationConfig
from ringrl.errors import UserError
from ringrl.policy import UNBOUNDED, ContextPolicy, RolloutSetting, RolloutSpec, TrainedPolicy
from ringrl.rollout import task_vector_policy
from ringrl.rollout.ablation import check_ablation
from ringrl.rollout.task_vector_policy import TrainedTaskVectorPolicy
from ringrl.sampling.normalizer import Normalizer

SCALES = Normalizer(np.full(2, 1, np.float32), np.full(2, 2, np.float32), return_scale=1.0, reward_scale=4.0)
ENVS = np.ones(2, bool)


def start(**setting):
    trained = TrainedTaskVectorPolicy(lambda seen: seen, lambda seen, z: z, 2, SCALES, step=7)
    assert isinstance(trained, TrainedPolicy)
    policy = trained.start(RolloutSpec(UNBOUNDED), RolloutSetting(2, trial_steps=3, trials=2, **setting))
    assert isinstance(policy, ContextPolicy)
    policy.begin_trial(ENVS)
    return policy


def on_sphere(*z):
    z = np.array(z, float)
    return z * np.sqrt(2) / np.linalg.norm(z, axis=1, keepdims=True)


def step(policy, observation, reward, done=False):
    """Observations as the environments give them: B is (observation - 1) / 2."""
    z = policy.act(np.array(observation, np.float32))
    policy.observe(np.array(reward, np.float32), np.array([done, done]))
    return z


def trial(observation, reward, trial=None):
    """Fields of demonstrations, normalised already."""
    numbers = np.zeros(len(reward), np.int32) if trial is None else np.array(trial, np.int32)
    fields = {"observation": np.array(observation, np.float32), "reward": np.array(reward, np.float32)}
    return fields | {"trial": numbers, "step": numbers}


def test_a_reward_is_paired_with_the_state_after_it():
    policy = start()
    step(policy, [[1, 1], [1, 1]], [4, 0])
    z = step(policy, [[3, 1], [1, 3]], [8, 2])  # (1, 0) earned 4 / 4 in the first environment, nothing in the second
    np.testing.assert_allclose(z[0], [np.sqrt(2), 0], rtol=1e-6)
    z = step(policy, [[1, 3], [5, 5]], [1, 1], done=True)  # then (0, 1) 8 / 4, and (2, 2) 2 / 4
    np.testing.assert_allclose(z, on_sphere([1, 2], [1, 1]), rtol=1e-6)
    policy.begin_trial(ENVS)
    z = step(policy, [[9, 1], [9, 1]], [0, 0])  # the first observation of a trial is not what the last one earned
    np.testing.assert_allclose(z, on_sphere([1, 2], [1, 1]), rtol=1e-6)


def test_the_sum_goes_over_trials_and_to_tiny_rewards():
    policy = start()
    for observation, reward in (([3, 1], 1e-30), ([1, 3], 1e-30)):
        step(policy, [[0, 0]] * 2, [reward, 4])
        step(policy, [observation] * 2, [0, 0], done=True)
        policy.begin_trial(ENVS)
    np.testing.assert_allclose(policy.task_vectors(), on_sphere([1, 1], [1, 1]), rtol=1e-5)


def test_before_anything_is_paid_z_is_random_for_each_environment_and_trial():
    policy, other = start(seed=3), start(seed=3, first=1)
    z = policy.task_vectors()
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.sqrt(2), rtol=1e-6)
    assert not np.allclose(z[0], z[1])
    np.testing.assert_array_equal(other.task_vectors()[0], z[1])  # it depends on the environment's own number
    np.testing.assert_array_equal(step(policy, [[1, 1]] * 2, [0, 0]), z)
    np.testing.assert_array_equal(step(policy, [[5, 1]] * 2, [0, 0]), z)  # all through the trial
    policy.begin_trial(np.array([True, False]))
    again = policy.task_vectors()
    assert not np.allclose(again[0], z[0]) and np.array_equal(again[1], z[1])


@pytest.mark.parametrize("at_once", [1, 4096])
def test_demonstrations_for_all_and_for_each(at_once, monkeypatch):
    monkeypatch.setattr(task_vector_policy, "ENCODED_AT_ONCE", at_once)
    # two trajectories: (1, 0) was earned 2, (0, 1) 3; the last rewards have no state after them
    shown = trial([[9, 9], [1, 0], [9, 9], [0, 1]], [2, 100, 3, 100], [0, 0, 1, 1])
    policy = start()
    policy.demonstrate(shown)
    assert policy.demonstrations == 2
    np.testing.assert_allclose(policy.task_vectors(), on_sphere([2, 3], [2, 3]), rtol=1e-6)
    each = start()
    each.demonstrate([shown, trial([[9, 9], [1, 1]], [1, 0])])
    np.testing.assert_allclose(each.task_vectors(), on_sphere([2, 3], [1, 1]), rtol=1e-6)
    step(each, [[1, 1]] * 2, [40, 4])
    z = step(each, [[3, 1], [1, 3]], [0, 0])  # 10 * (1, 0) and 1 * (0, 1) of its own
    np.testing.assert_allclose(z, on_sphere([12, 3], [1, 2]), rtol=1e-6)
    with pytest.raises(UserError, match="the context has begun already"):
        each.demonstrate(shown)


def test_what_is_forgotten_is_forgotten_and_a_saved_state_goes_on():
    policy, other = start(), start()
    policy.demonstrate(trial([[9, 9], [1, 0]], [1, 0]))
    step(policy, [[1, 1]] * 2, [4, 4])
    other.restore({name: value.copy() for name, value in policy.state().items()})
    for each in (policy, other):
        z = step(each, [[1, 3], [1, 5]], [0, 0])
        np.testing.assert_allclose(z, on_sphere([1, 1], [1, 2]), rtol=1e-6)
        assert each.demonstrations == 1 and each.room().all() and not len(each.dropped)
    policy.forget(np.array([True, False]))
    np.testing.assert_allclose(policy.task_vectors()[1], on_sphere([1, 2])[0], rtol=1e-6)
    assert policy.demonstrations == 1 and not np.allclose(policy.task_vectors()[0], z[0])
    policy.forget(ENVS)
    assert policy.demonstrations == 0
    policy.demonstrate(trial([[9, 9], [1, 0]], [1, 0]))  # as at the start
    assert policy.demonstrations == 1


def test_ablations_change_the_earlier_trials_or_hide_rewards():
    def after(ablation):
        policy = start(ablation=ablation)
        policy.demonstrate([trial([[9, 9], [1, 0]], [1, 0]), trial([[9, 9], [0, 1]], [1, 0])])
        step(policy, [[1, 1]] * 2, [4, 4])
        return step(policy, [[3, 3], [3, 3]], [0, 0])

    np.testing.assert_allclose(after("foreign"), on_sphere([1, 2], [2, 1]), rtol=1e-6)
    np.testing.assert_allclose(after("truncated"), on_sphere([1, 1], [1, 1]), rtol=1e-6)
    np.testing.assert_array_equal(after("blind"), start().task_vectors())
    with pytest.raises(UserError, match="forward_backward's context is a sum over its steps, in no order"):
        check_ablation(
            "shuffled", "forward_backward", RolloutSpec(UNBOUNDED), EvaluationConfig(), 3, across_trials=True
        )


def test_trials_that_explore_take_random_actions_and_their_rewards_count():
    policy = start(explore=1)
    drawn = [np.random.default_rng((0, 13, env, 0)).uniform(-1, 1, 2).astype(np.float32) for env in range(2)]
    np.testing.assert_array_equal(step(policy, [[1, 1]] * 2, [4, 4]), np.stack(drawn))
    step(policy, [[3, 1], [1, 3]], [0, 0], done=True)
    policy.begin_trial(ENVS)
    np.testing.assert_allclose(step(policy, [[5, 5]] * 2, [0, 0]), on_sphere([1, 0], [0, 1]), rtol=1e-6)
    assert policy.explored == 1
