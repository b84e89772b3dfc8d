"""Physics states -> the features that the rewards of a family read, for a store to keep beside its steps."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Float32

from ringrl.envs import DMControlEnv, RewardFamily, make_env
from ringrl.envs.simulator import PhysicsError
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.relabelling.reward_physics import Needs, Recorder, RowByRow, first_rejected, needs_of


class FeatureReader:
    """The features of a family in every state of an episode, equal to the environment's in every bit.

    Each feature is computed as if it were a task's reward, so all that holds of `ringrl.relabelling.rewards` holds
    here: one pass over an episode where the physics allow it, row by row where not.
    """

    def __init__(self, family: RewardFamily):
        """Make the family's environment."""
        self.family, self._environment = family, make_env(f"hidden_{family.name}")
        self._environment.reset(seed=0)
        columns = [_Column(self._environment, family.read, index) for index in range(len(family.features))]
        needs = [needs_of(column, "exact") for column in columns]
        known = [each for each in needs if each is not None]
        if len(known) == len(columns):
            self._read: Recorder | RowByRow = Recorder(columns, reduce(Needs.__or__, known), "exact")
        else:
            self._read = RowByRow(columns, "exact")

    def __call__(self, episode: Episode) -> Float32[np.ndarray, "steps_and_one features"]:
        """The features of every state: row t + 1 follows action t; row 0 is the initial state, its actuators at zero.

        Raises:
            UserError: if the episode's widths are not the domain's, or MuJoCo rejects a state.
        """
        states, actions = self._environment.physics.get_state().size, self._environment.physics.model.nu
        if (episode.dims.physics, episode.dims.action) != (states, actions):
            raise UserError(
                f"features of {self.family.name}: it has states of width {states} and actions of width {actions}, the "
                f"episode {episode.dims.physics} and {episode.dims.action}"
            )
        row = first_rejected(episode.physics, self._environment.physics.model)
        if row is not None:
            raise UserError(f"features of {self.family.name}: MuJoCo rejects the state of row {row}")
        controls = self._environment.control(episode.action)
        try:
            return self._read(episode.physics, np.concatenate([np.zeros_like(controls[:1]), controls]))
        except PhysicsError as error:
            raise UserError(f"features of {self.family.name}: {error}") from error


class _Column(DMControlEnv):
    """An environment, shared with the other columns, whose reward is one feature."""

    def __init__(self, environment: DMControlEnv, read: Callable[[Any], Any], index: int):
        self.__dict__.update(environment.__dict__)
        self._read, self._index = read, index

    @property
    def task(self) -> "_Column":
        return self

    def get_reward(self, physics: Any) -> Any:
        return self._read(physics)[self._index]
