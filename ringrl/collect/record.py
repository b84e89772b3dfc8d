"""The rollout of one episode, recorded in environment steps and in agent steps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from ringrl.envs import DMControlEnv
from ringrl.episode import Episode


class AgentSteps(NamedTuple):
    """An episode of K agent steps, as its learner sees it.

    Attributes:
        observation: before each agent step, and after the last.
        action: in [-1, 1].
        reward: the sum over the environment steps of each agent step.
        discount: 0 where the episode really ended, else 1.
    """

    observation: Float32[np.ndarray, "agent_steps_plus_1 observation"]
    action: Float32[np.ndarray, "agent_steps action"]
    reward: Float32[np.ndarray, " agent_steps"]
    discount: Float32[np.ndarray, " agent_steps"]


def record_episode(env: DMControlEnv, act: Callable[[np.ndarray], np.ndarray]) -> tuple[Episode, AgentSteps]:
    """Roll out one episode, from a reset to its end.

    Args:
        env: the environment; its action repeat is the number of environment steps per agent step.
        act: the policy: an observation, float32 [O], to an action, float32 [A] in [-1, 1].

    Returns:
        The episode in environment steps, and the same in agent steps.
    """
    observation, info = env.reset()
    rows = {"observation": [observation[None]], "physics": [info["physics"][None]], "reward": [], "discount": []}
    seen, actions, rewards, discounts, repeated = [observation], [], [], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = act(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        for name, parts in rows.items():
            parts.append(info["rows"][name])
        repeated.append(np.repeat(action[None], len(info["rows"]["reward"]), axis=0))
        seen.append(observation)
        actions.append(action)
        rewards.append(reward)
        discounts.append(info["discount"])
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    episode = Episode(**{**joined, "reward": joined["reward"][:, None]}, action=np.concatenate(repeated))
    return episode, AgentSteps(
        np.stack(seen), np.stack(actions), np.asarray(rewards, np.float32), np.asarray(discounts, np.float32)
    )
