"""Learning histories without a learner: an expert's actions under noise that fades from trial to trial (AD-eps).

Emergence of In-Context Reinforcement Learning from Noise Distillation (Zisman et al. 2023, arXiv:2312.12275).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32

from ringrl.collect.correlated_noise import CorrelatedNoise
from ringrl.collect.record import record_episode
from ringrl.envs import DMControlEnv, make_env
from ringrl.episode import Episode


@dataclass(frozen=True)
class Noise:
    """How the noise fades and how it mixes with the expert.

    Attributes:
        anneal: share of the trials over which eps falls linearly from 1 to 0; the others are the expert's own.
        mix: "coin", the paper's: an action is with probability eps a uniform draw, else the expert's. "blend": it is
            (1 - eps) expert + eps noise, whose distribution has one mode, as a Gaussian head's has.
        correlation: of the blended noise from one agent step to the next; correlated noise explores further.
        scale: standard deviation of the blended noise, before it is clipped to [-1, 1].
    """

    anneal: float = 0.8
    mix: Literal["blend", "coin"] = "blend"
    correlation: float = 0.8
    scale: float = 1.0


def noisy_history(
    task: str, seed: int, trials: int, action_repeat: int, noise: Noise, *, demonstrator: bool = False
) -> list[Episode]:
    """The learning history of the hidden task of `seed`: `trials` episodes in order, the first all noise.

    In trial k of n the share of noise is eps_k = max(0, 1 - k / (anneal n)) (Zisman et al. 2023, section 3.1).

    Args:
        task: a family of hidden tasks whose task has `expert(physics)`.
        seed: of the hidden task, of the initial states and of the noise.
        trials: episodes.
        action_repeat: environment steps per agent step.
        noise: how it fades.
        demonstrator: whether the episodes shall have the expert's own actions, for every environment step.
    """
    env = make_env(task, seed=seed, action_repeat=action_repeat)
    rng = np.random.default_rng([seed, 1])
    episodes = []
    for trial in range(trials):
        noisy = _Noisy(env, noise, max(0.0, 1.0 - trial / (noise.anneal * trials)), rng)
        episodes.append(record_episode(env, noisy.act)[0])
    return [_demonstrated(env, episode) for episode in episodes] if demonstrator else episodes


def _demonstrated(env: DMControlEnv, episode: Episode) -> Episode:
    """The episode with what the expert would have done in the state before each environment step."""
    shown, before = np.empty_like(episode.action), np.zeros_like(episode.action[0])
    for step, state in enumerate(episode.physics[:-1]):
        env.set_state(state, episode.action[step - 1] if step else before)
        shown[step] = env.task.expert(env.physics)
    return replace(episode, demonstrator=shown)


class _Noisy:
    """The expert's actions with a share `eps` of noise, for one trial."""

    def __init__(self, env: DMControlEnv, noise: Noise, eps: float, rng: np.random.Generator) -> None:
        self._env, self._settings, self._eps, self._rng = env, noise, eps, rng
        self._size = math.prod(env.action_space.shape or ())
        self._noise = CorrelatedNoise(self._size, noise.correlation, rng)

    def act(self, observation: Float32[np.ndarray, " observation"]) -> Float32[np.ndarray, " action"]:
        """An action in [-1, 1]; the expert looks at the physics and the hidden parameter, not at the observation."""
        expert, eps = self._env.task.expert(self._env.physics), self._eps
        if self._settings.mix == "coin":
            drawn = self._rng.uniform(-1, 1, self._size)
            return np.where(self._rng.uniform() < eps, drawn, expert).astype(np.float32)
        action = (1 - eps) * expert + eps * np.clip(self._settings.scale * self._noise.draw(), -1, 1)
        return action.astype(np.float32)
