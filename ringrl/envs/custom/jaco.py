"""jaco: a Kinova arm with a hand of three fingers, brought to one of four positions on the table.

Scene, robot and sensors are dm_control's own, as in its `manipulation` tasks. ExoRL steps them with the composer's
environment; the suite's, used here, makes the same steps of the same physics, and keeps one model for all episodes.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
from dm_control import mjcf
from dm_control.composer import initializers
from dm_control.composer.variation import distributions
from dm_control.manipulation.shared import arenas, cameras, observations, robots, workspaces
from dm_control.rl.control import Environment
from dm_control.suite import base
from dm_control.utils import rewards

GOALS = {
    "reach_top_left": (-0.09, 0.09, 0.001),
    "reach_top_right": (0.09, 0.09, 0.001),
    "reach_bottom_left": (-0.09, -0.09, 0.001),
    "reach_bottom_right": (0.09, -0.09, 0.001),
}
"""Where the point between the fingers should come, m."""

BETWEEN_FINGERS = "jaco_arm/jaco_hand/pinchsite"
"""The site of the point between the fingers."""

_GOAL_RADIUS = 0.05
_HAND_START: Any = ((-0.2, -0.2, 0.02), (0.2, 0.2, 0.4))  # lower and upper corner of the hand's initial positions, m
# A place is drawn again while no posture reaches it without a collision; dm_control's limit of 10 is a crash, at times.
_START_ATTEMPTS = 1000


class JacoReach(base.Task):
    """Bring the point between the fingers within 5 cm of a goal."""

    def __init__(self, name: str, seed: int):
        """`name`: of the task. `seed`: of the initial states."""
        super().__init__(random=seed)
        self._name, self._goal = name, np.array(GOALS[name])
        self._arena = arenas.Standard()
        arm = robots.make_arm(observations.PERFECT_FEATURES)
        self._hand = robots.make_hand(observations.PERFECT_FEATURES)
        arm.attach(self._hand)
        self._arena.attach_offset(arm, offset=robots.ARM_OFFSET)
        cameras.add_camera_observables(self._arena, observations.PERFECT_FEATURES, cameras.FRONT_CLOSE)
        scene: Any = self._arena.mjcf_model
        for goal, position in GOALS.items():
            scene.worldbody.add("site", name=goal, pos=position, size=(_GOAL_RADIUS,), rgba=(1, 0, 0, 0.05))
        self._place_hand = initializers.ToolCenterPointInitializer(
            self._hand,
            arm,
            position=distributions.Uniform(*_HAND_START),
            quaternion=workspaces.DOWN_QUATERNION,
            max_rejection_samples=_START_ATTEMPTS,
        )
        every = [item for entity in self._arena.iter_entities() for item in entity.observables.as_dict().items()]
        self._observables = [(part, observable) for part, observable in every if observable.enabled]

    def make_physics(self) -> mjcf.Physics:
        """The scene, compiled."""
        return mjcf.Physics.from_mjcf_model(self._arena.mjcf_model)

    def initialize_episode(self, physics: Any) -> None:
        """The hand anywhere in a box over the table, pointing down, opened at random."""
        self._hand.set_grasp(physics, close_factors=self.random.uniform())
        self._place_hand(physics, self.random)
        physics.named.model.site_rgba[self._name, "a"] = 0.4
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, np.ndarray]:
        """dm_control's features of arm and hand, in its order; the goal is not among them."""
        return OrderedDict((part, observable(physics, self.random)) for part, observable in self._observables)

    def get_reward(self, physics: Any) -> Any:
        """Nearness to the goal."""
        distance = np.linalg.norm(physics.named.data.site_xpos[BETWEEN_FINGERS] - self._goal)
        return rewards.tolerance(distance, bounds=(0, _GOAL_RADIUS), margin=_GOAL_RADIUS)


def _make(name: str, seed: int) -> Environment:
    task = JacoReach(name, seed)
    return Environment(task.make_physics(), task, time_limit=10, control_timestep=0.04)


TASKS = {name: partial(_make, name) for name in GOALS}
