"""One episode lived through: as ExoRL stores it, and as a learner sees it."""

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
    """One episode of `env` from its reset on, as ExoRL stores it (a dummy row, then one row a control step) and as a
    learner sees it. `act` maps an observation, float32 [O], to an action, float32 [A] in [-1, 1].
    """
    observation, info = env.reset()
    rows = [_rows(observation[None], info["physics"][None], reward=0.0, discount=1.0)]
    seen, actions, rewards, discounts = [observation], [], [], []
    held = [np.zeros((1, *(env.action_space.shape or ())), np.float32)]
    terminated = truncated = False
    while not (terminated or truncated):
        action = act(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append(info["rows"])
        held.append(np.repeat(action[None], len(info["rows"]["reward"]), axis=0))
        seen.append(observation)
        actions.append(action)
        rewards.append(reward)
        discounts.append(info["discount"])
    joined = {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}
    episode = Episode(**{**joined, "reward": joined["reward"][:, None]}, action=np.concatenate(held))
    return episode, Decisions(
        np.stack(seen), np.stack(actions), np.asarray(rewards, np.float32), np.asarray(discounts, np.float32)
    )


def _rows(observation: np.ndarray, physics: np.ndarray, reward: float, discount: float) -> dict[str, np.ndarray]:
    """One control step in the form of the environment's `info["rows"]`."""
    scalars = {"reward": np.full(1, reward, np.float32), "discount": np.full(1, discount, np.float32)}
    return {"observation": observation, "physics": physics, **scalars}
