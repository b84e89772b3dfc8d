"""point_mass_maze: the suite's point mass in four chambers, between which a cross of walls leaves gaps at its ends.

It starts in the chamber at the top left; each task's goal is the middle of one chamber. Unlike the suite's, its walls
are solid.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
from dm_control import mujoco
from dm_control.rl.control import Environment
from dm_control.suite import base, common
from dm_control.utils import rewards
from jaxtyping import Float64

# Metres, seen from above: x to the right, y up.
GOALS = {
    "reach_top_left": (-0.15, 0.15, 0.01),
    "reach_top_right": (0.15, 0.15, 0.01),
    "reach_bottom_left": (-0.15, -0.15, 0.01),
    "reach_bottom_right": (0.15, -0.15, 0.01),
}
"""The goals, in the order of the reward columns of ExoRL's files."""

_START = ((-0.29, 0.15), (-0.15, 0.29))  # lower and upper corner of the initial positions, m
_GOAL_RADIUS = 0.015

_SITES = "\n".join(
    f'<site name="{name}" pos="{x} {y} {z}" size="{_GOAL_RADIUS}" rgba=".6 .3 .3 .2"/>'
    for name, (x, y, z) in GOALS.items()
)
_MODEL = f"""
<mujoco model="point_mass_maze">
  <include file="./common/skybox.xml"/>
  <include file="./common/visual.xml"/>
  <include file="./common/materials.xml"/>
  <option timestep="0.02"/>
  <default>
    <joint type="slide" limited="true" range="-.29 .29" damping="1"/>
    <motor gear=".1" ctrllimited="true" ctrlrange="-1 1"/>
    <default class="edge"><geom type="plane" material="decoration"/></default>
    <default class="cross"><geom type="box" material="site"/></default>
  </default>
  <worldbody>
    <light name="light" pos="0 0 1"/>
    <camera name="fixed" pos="0 0 .75"/>
    <geom name="floor" type="plane" size=".3 .3 .1" material="grid"/>
    <geom name="left" class="edge" pos="-.3 0 .02" zaxis="1 0 0" size=".02 .3 .02"/>
    <geom name="bottom" class="edge" pos="0 -.3 .02" zaxis="0 1 0" size=".3 .02 .02"/>
    <geom name="right" class="edge" pos=".3 0 .02" zaxis="-1 0 0" size=".02 .3 .02"/>
    <geom name="top" class="edge" pos="0 .3 .02" zaxis="0 -1 0" size=".3 .02 .02"/>
    <geom name="bar" class="cross" pos="0 0 .02" zaxis="0 1 0" size=".18 .02 .02"/>
    <geom name="column" class="cross" pos="0 0 .02" zaxis="1 0 0" size=".02 .18 .02"/>
    {_SITES}
    <body name="pointmass" pos="0 0 .01">
      <joint name="root_x" axis="1 0 0"/>
      <joint name="root_y" axis="0 1 0"/>
      <geom name="pointmass" type="sphere" size=".01" material="self" mass=".3"/>
    </body>
  </worldbody>
  <actuator>
    <motor name="x" joint="root_x"/>
    <motor name="y" joint="root_y"/>
  </actuator>
</mujoco>
"""


class MazeReach(base.Task):
    """Come within 1.5 cm of a goal, with little force."""

    def __init__(self, name: str, seed: int):
        """`name`: of the task. `seed`: of the initial states."""
        super().__init__(random=seed)
        self._name, self._goal = name, np.array(GOALS[name])

    def initialize_episode(self, physics: Any) -> None:
        """At rest, anywhere in the outer part of the chamber at the top left."""
        physics.data.qpos[:] = self.random.uniform(*_START)
        physics.named.model.site_rgba[self._name, "a"] = 1.0
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, Float64[np.ndarray, "2"]]:
        """Position and velocity."""
        return OrderedDict(position=physics.position(), velocity=physics.velocity())

    def get_reward(self, physics: Any) -> Any:
        """Nearness to the goal, of which the action can cost a fifth."""
        distance = np.linalg.norm(self._goal - physics.named.data.geom_xpos["pointmass"])
        near = rewards.tolerance(distance, bounds=(0, _GOAL_RADIUS), margin=_GOAL_RADIUS)
        ease = np.mean(rewards.tolerance(physics.control(), margin=1, value_at_margin=0, sigmoid="quadratic"))
        return near * ((ease + 4) / 5)


def _make(name: str, seed: int) -> Environment:
    physics = mujoco.Physics.from_xml_string(_MODEL, common.ASSETS)
    return Environment(physics, MazeReach(name, seed), time_limit=20)


TASKS = {name: partial(_make, name) for name in GOALS}
