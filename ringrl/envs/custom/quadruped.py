"""quadruped stand, jump, roll and roll_fast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import common, quadruped

from ringrl.envs.custom.terms import at_least

_FLOOR = 10.0  # half the floor's side, m: that of the suite's walk


class Quadruped(quadruped.Move):
    """The suite's quadruped, paid for an upright torso times a quantity that should reach its target."""

    def __init__(self, quantity: Callable[[Any], Any] | None, target: float, seed: int):
        """`quantity`: of physics; None pays for being upright alone. `seed`: of the initial states."""
        super().__init__(desired_speed=target, random=seed)
        self._quantity, self._target = quantity, target

    def get_reward(self, physics: Any) -> Any:
        """The task's reward."""
        upright = at_least(physics.torso_upright(), 1.0, margin=2.0, value_at_margin=0.0)
        if self._quantity is None:
            return upright
        return upright * at_least(self._quantity(physics), self._target, margin=self._target, value_at_margin=0.5)


def _height(physics: Any) -> Any:
    """Of the centre of mass, m."""
    return physics.named.data.sensordata["center_of_mass"][2]


def _speed(physics: Any) -> Any:
    """Of the torso in any direction, m/s."""
    return np.linalg.norm(physics.torso_velocity())


def _make(quantity: Callable[[Any], Any] | None, target: float, seed: int) -> Environment:
    physics = quadruped.Physics.from_xml_string(quadruped.make_model(floor_size=_FLOOR), common.ASSETS)
    return Environment(physics, Quadruped(quantity, target, seed), time_limit=20, control_timestep=0.02)


TASKS = {
    "stand": partial(_make, None, 0.0),
    "jump": partial(_make, _height, 1.0),
    "roll": partial(_make, _speed, 0.5),
    "roll_fast": partial(_make, _speed, 5.0),
}
