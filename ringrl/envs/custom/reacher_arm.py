"""reacher_arm: the suite's reacher without a target of its own; the finger is brought to one of four goals.

The suite draws a target for every episode, which no file of states keeps, and shows the way to it. Here goals are
constants of the tasks and no part of the observation, as in ExoRL's jaco, so all tasks share one set of episodes.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import base, reacher
from dm_control.suite.utils import randomizers
from dm_control.utils import rewards

GOALS = {
    "reach_top_left": (-0.1, 0.1),
    "reach_top_right": (0.1, 0.1),
    "reach_bottom_left": (-0.1, -0.1),
    "reach_bottom_right": (0.1, -0.1),
}
"""Where the middle of the finger should come, m."""

FINGER = 0.01
"""The finger's radius, m: the suite pays where its surface touches the target's."""

HARD = 0.015
"""The target's radius in these tasks and in the suite's `reacher_hard`, m."""


class ArmReach(base.Task):
    """Touch a target of 1.5 cm with the finger."""

    def __init__(self, goal: tuple[float, float], seed: int):
        """`goal`: m. `seed`: of the initial states."""
        super().__init__(random=seed)
        self._goal = np.array(goal)

    def initialize_episode(self, physics: Any) -> None:
        """At rest, with random joints, as in the suite."""
        physics.named.model.geom_pos["target", :2] = self._goal
        physics.named.model.geom_size["target", 0] = HARD
        randomizers.randomize_limited_and_rotational_joints(physics, self.random)
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, np.ndarray]:
        """Joint positions, where the finger is, joint velocities."""
        finger = physics.named.data.geom_xpos["finger", :2].copy()
        return OrderedDict(position=physics.position(), finger=finger, velocity=physics.velocity())

    def get_reward(self, physics: Any) -> Any:
        """1 where the finger touches the target, else 0, as in the suite."""
        distance = np.linalg.norm(self._goal - physics.named.data.geom_xpos["finger", :2])
        return rewards.tolerance(distance, bounds=(0, HARD + FINGER))


def make(goal: tuple[float, float], seed: int) -> Environment:
    """The environment of a goal."""
    physics = reacher.Physics.from_xml_string(*reacher.get_model_and_assets())
    return Environment(physics, ArmReach(goal, seed), time_limit=20)


TASKS = {name: partial(make, goal) for name, goal in GOALS.items()}
