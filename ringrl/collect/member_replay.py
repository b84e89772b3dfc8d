"""A replay of reward-free transitions, each paid by a member of a family of rewards that is drawn with it.

So one policy that sees the parameter learns all members at once, from one data set and with no expert: off-policy
learning conditioned on a goal (universal value functions: Schaul et al. 2015), a share of the goals taken in hindsight
from what the same episode came to later (hindsight experience replay, strategy "future": Andrychowicz et al. 2017),
without which a narrow goal would hardly ever be paid.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int64

from ringrl.collect.replay import Replay, Transitions
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import RelabelledEpisodes

_TOGETHER = 50
"""Gradient steps whose transitions and members are drawn together: members of motion, each alone, take as long as ten
gradient steps, for most of that time is NumPy's for every call."""

_STATES, _LEAST, _USUAL = 64, np.float32(0.01), np.float32(0.1)
"""Of `scale_members`: how many states of the data, an average reward well below which members stay small, and what the
average becomes."""


class MemberReplay:
    """The episodes of a store as a `Replay`, with the rewards and the parameters of newly drawn members.

    Each minibatch is a function of (seed, step).
    """

    def __init__(
        self,
        replay: Replay,
        episodes: RelabelledEpisodes,
        normalizer: Normalizer,
        action_repeat: int,
        *,
        scale_members: bool = False,
    ):
        """An empty replay.

        Args:
            replay: an empty one with room for all agent steps of `episodes`.
            episodes: whose features pay; their observations end with the parameter.
            normalizer: the scales of those observations, of which the parameter's are the last.
            action_repeat: environment steps in an agent step.
            scale_members: whether the rewards of each member are scaled to one average over states of the data. Which
                policy is best stays as it was; without, critics learn the members that pay most, and the others' values
                are within their error.
        """
        self._replay, self._family, self._repeat = replay, episodes.family, action_repeat
        self._share, self._hindsight = episodes.hindsight_share, episodes.hindsight_between
        width = len(episodes.family.parameters)
        self._mean, self._std = normalizer.observation_mean[-width:], normalizer.observation_std[-width:]
        self._features = episodes.store.features(episodes.family.name)
        count = -(-episodes.lengths // action_repeat)
        episode = np.repeat(np.arange(len(count)), count)
        step = np.arange(len(episode)) - np.repeat(np.cumsum(count) - count, count)
        # Of every transition, the rows of the features after its first environment step and after its episode's last.
        self._first = episodes.store.first_rows[episode] + step * action_repeat + 1
        self._last = episodes.store.first_rows[episode] + episodes.lengths[episode]
        some = (
            np.random.default_rng(0).integers(len(self._features), size=_STATES) if scale_members else np.zeros(0, int)
        )
        self._states = self._features[some]  # over which members' rewards are averaged; none: they are not scaled
        self._weights = np.zeros((len(episode), replay.n_step), np.float32)  # of each of the n rewards

    def add_episode(
        self,
        observation: Float32[np.ndarray, "agent_steps_plus_1 observation"],
        action: Float32[np.ndarray, "agent_steps action"],
        reward: Float32[np.ndarray, " agent_steps"],
        discount: Float32[np.ndarray, " agent_steps"],
    ) -> None:
        """Store the next episode, normalised, as `Replay.add_episode` does; all are added, in the store's order."""
        rows = slice(self._replay.size, self._replay.size + len(action))
        self._replay.add_episode(observation, action, reward, discount)
        weights = self._weights[rows]
        weights[:, 0] = 1.0
        n_discount = self._replay.gamma * discount
        for k in range(1, min(self._replay.n_step, len(action))):
            weights[:-k, k] = n_discount[:-k]
            n_discount[:-k] *= self._replay.gamma * discount[k:]

    def sample_steps(self, start: int, stop: int, seed: int) -> Transitions:
        """Minibatches of the gradient steps `start:stop`, on JAX's default device, each a function of (seed, step)."""
        first, last = start // _TOGETHER, -(-stop // _TOGETHER)
        draws = [self._draw(np.random.default_rng((seed, block))) for block in range(first, last)]
        these = slice(start - first * _TOGETHER, stop - first * _TOGETHER)
        index, members = (np.concatenate(each)[these] for each in zip(*draws, strict=True))
        return self.relabelled(index, members)

    def drawn(self, step: int, seed: int) -> Int64[np.ndarray, " batch"]:
        """The rows in the minibatch of gradient step `step`."""
        block, inside = divmod(step, _TOGETHER)
        return self._draw(np.random.default_rng((seed, block)))[0][inside]

    def relabelled(
        self, index: Int64[np.ndarray, "*updates batch"], members: Float32[np.ndarray, "*updates batch parameters"]
    ) -> Transitions:
        """Transitions by number, in the order in which they were added, each as the task of its member has it."""
        observation, action, _, discount, successor = self._replay.take(index)
        seen = (members - self._mean) / self._std
        for each in (observation, successor):
            each[..., -seen.shape[-1] :] = seen
        reward = self._rewards(index, members)
        if len(self._states):
            average = self._family.reward(self._states, members[..., None, :]).mean(axis=-1)
            reward = reward * (_USUAL / (_LEAST + average))
        arrays = (observation, action, reward, discount, successor)
        return Transitions(*map(jnp.asarray, arrays))

    def _draw(
        self, rng: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "updates batch"], Float32[np.ndarray, "updates batch parameters"]]:
        """Uniform transitions; for a share of them members that pay at a later state of the episode, else any."""
        index = rng.integers(self._replay.size, size=_TOGETHER * self._replay.batch)
        members = self._family.members(rng, len(index))
        some = rng.random(len(index)) < self._share
        members[some] = self._hindsight(rng, self._first[index[some]], self._last[index[some]])
        shape = (_TOGETHER, self._replay.batch)
        return index.reshape(shape), members.reshape(*shape, -1)

    def _rewards(self, index: np.ndarray, members: np.ndarray) -> Float32[np.ndarray, "*updates batch"]:
        """The n-step sums of discounted rewards, as `Replay` computes them."""
        steps = self._replay.n_step * self._repeat
        rows = self._first[index][..., None] + np.arange(steps)
        last = self._last[index][..., None]
        seen = self._features[np.minimum(rows, last)]
        paid = self._family.reward(seen, members[..., None, :]).astype(np.float64)
        paid[rows > last] = 0.0
        # Summed as by `rewards_by_agent_step`, so that rewards are those of contexts to the bit.
        summed = np.add.reduceat(paid.ravel(), np.arange(0, paid.size, self._repeat)).astype(np.float32)
        summed, weights = summed.reshape(*index.shape, -1), self._weights[index]
        total = summed[..., 0]
        for k in range(1, self._replay.n_step):
            total = total + weights[..., k] * summed[..., k]
        return total
