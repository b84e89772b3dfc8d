"""Many trials of many environments, all stepped as one batch."""

from collections.abc import Callable

import gymnasium
import numpy as np

from ringrl.agent import Policy
from ringrl.returns import TrialReturn


def run_trials(
    policy: Policy,
    envs: gymnasium.vector.VectorEnv,
    trials: int,
    *,
    agent: str,
    task: str,
    seed: int,
    action_repeat: int = 1,
    on_step: Callable[[int], None] = lambda done: None,
) -> list[TrialReturn]:
    """Roll `policy` out until every environment has finished `trials` trials.

    Args:
        policy: chooses the actions.
        envs: must not reset by themselves (Gymnasium's AutoresetMode.DISABLED): a trial's last reward has to reach the
            policy before the next trial's first observation. An environment that has finished its trials is stepped
            until all have, and not recorded.
        trials: in each environment.
        agent: its name in the results.
        task: the task's name in the results.
        seed: the training run's, in the results.
        action_repeat: environment steps in an agent step.
        on_step: called after every agent step with the number of trials finished.

    Returns:
        The return and the length, in environment steps, of every trial, in the order in which they ended.
    """
    observation, _ = envs.reset()
    everyone = np.ones(envs.num_envs, bool)
    policy.begin_trial(everyone)
    earned, length, trial = np.zeros(envs.num_envs), np.zeros(envs.num_envs, int), np.zeros(envs.num_envs, int)
    results: list[TrialReturn] = []
    target = np.nan if policy.target is None else policy.target
    while (trial < trials).any():
        observation, reward, terminated, truncated, info = envs.step(policy.act(observation))
        done = terminated | truncated
        policy.observe(reward.astype(np.float32), done)
        earned += reward
        length += info.get("length", action_repeat)
        for env in np.flatnonzero(done & (trial < trials)).tolist():
            results.append(
                TrialReturn(agent, task, seed, env, int(trial[env]), float(earned[env]), int(length[env]), target)
            )
        trial += done
        on_step(len(results))
        if done.any() and (trial < trials).any():
            observation, _ = envs.reset(options={"reset_mask": done})
            policy.begin_trial(done)
            earned[done], length[done] = 0.0, 0
    return results
