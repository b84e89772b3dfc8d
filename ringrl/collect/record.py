"""The rollout of one episode: every environment step, and as a learner sees it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from ringrl.envs import DMControlEnv
from ringrl.episode import Episode


class Decisions(NamedTuple):
    """An episode as the learner sees it: one row a decision, with the sum of the rewards while the action is held."""

    observation: Float32[np.ndarray, "decisions_plus_1 observation"]
    action: Float32[np.ndarray, "decisions action"]
    reward: Float32[np.ndarray, " decisions"]
    discount: Float32[np.ndarray, " decisions"]


def record_episode(env: DMControlEnv, act: Callable[[np.ndarray], np.ndarray]) -> tuple[Episode, Decisions]:
    """One episode of `env` from its reset on, one step an environment step, and as a learner sees it.

    `act` maps an observation, float32 [O], to an action, float32 [A] in [-1, 1].
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
    return episode, Decisions(
        np.stack(seen), np.stack(actions), np.asarray(rewards, np.float32), np.asarray(discounts, np.float32)
    )
