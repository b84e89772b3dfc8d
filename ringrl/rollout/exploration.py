"""Explore first: random actions in the first trials of a rollout, so that its context begins as reward-free data do.

What an agent has been trained to read are trajectories of a policy that knows nothing. Where its own policy, before it
has been paid, reaches little, trials of that policy are the better first ones.

| `explore_correlation` | an action | as |
|---|---|---|
| 0 | uniform in [-1, 1], independent at every agent step | `ringrl data collect --policy random` |
| rho | clip(1.2 z, -1, 1), z of correlation rho from one agent step to the next | `--policy correlated` |

An environment's draws in a trial depend on the seed, on its index among all, and on the trial's number, and on nothing
else, so a session that was saved goes on with the same ones.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float32, Float64

from ringrl.collect.correlated_noise import CorrelatedNoise
from ringrl.policy import RolloutSetting

_STREAM = 13  # of what an environment draws to explore
_SCALE = 1.2  # of z: the default of `ringrl data collect --policy correlated`


class Exploration:
    """The random actions of every environment, and in which trials they are taken.

    Attributes:
        trials: at the beginning, in which all actions are random.
    """

    def __init__(self, setting: RolloutSetting):
        """`setting`: of the rollout, before its first trial."""
        self.trials, self._setting = setting.explore, setting
        # The present trial's number, -1 before the first, and how many actions it has taken.
        self._trial, self._taken = (np.full(setting.environments, value, np.int64) for value in (-1, 0))
        self._sources: dict[int, Callable[[], Float64[np.ndarray, " action"]]] = {}

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """These environments were reset."""
        self._restart(which, self._trial + 1)

    def forget(self, which: Bool[np.ndarray, " envs"]) -> None:
        """The present trial of these environments is the first."""
        self._restart(which, np.zeros_like(self._trial))

    def _restart(self, which: Bool[np.ndarray, " envs"], trial: np.ndarray) -> None:
        self._trial, self._taken = np.where(which, trial, self._trial), np.where(which, 0, self._taken)
        self._sources = {env: source for env, source in self._sources.items() if not which[env]}

    def draw(self, size: int) -> tuple[Bool[np.ndarray, " envs"], Float32[np.ndarray, "envs action"]]:
        """Which environments explore in this agent step, and their actions of so many numbers; 0 in the others."""
        exploring = self._trial < self.trials
        actions = np.zeros((len(exploring), size), np.float32)
        for env in np.flatnonzero(exploring).tolist():
            actions[env] = self._source(env, size)()
        self._taken += 1
        return exploring, actions

    def _source(self, env: int, size: int) -> Callable[[], Float64[np.ndarray, " action"]]:
        """What draws the environment's actions: the present trial's next one."""
        if env not in self._sources:
            setting = self._setting
            rng = np.random.default_rng((setting.seed, _STREAM, setting.first + env, int(self._trial[env])))
            if setting.explore_correlation:
                noise = CorrelatedNoise(size, setting.explore_correlation, rng)
                self._sources[env] = lambda: np.clip(_SCALE * noise.draw(), -1.0, 1.0)
            else:
                self._sources[env] = lambda: rng.uniform(-1.0, 1.0, size)
            for _ in range(int(self._taken[env])):  # of a session that was saved in the midst of the trial
                self._sources[env]()
        return self._sources[env]

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, as arrays by name."""
        return {"explore/trial": self._trial, "explore/taken": self._taken}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Become what `state` was made of; a state without exploration is of a session that does not explore."""
        if "explore/trial" in state:
            self._trial, self._taken = state["explore/trial"].copy(), state["explore/taken"].copy()
        self._sources = {}
