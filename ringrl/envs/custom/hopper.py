"""hopper hop_backward, flip and flip_backward."""

from collections.abc import Callable
from functools import partial
from typing import Any

from dm_control.rl.control import Environment
from dm_control.suite import hopper
from dm_control.utils import rewards

from ringrl.envs.custom.terms import at_least, spinning

_UPRIGHT = (0.6, 2.0)  # heights of the torso over the foot, m
_HOP_SPEED = 2.0  # m/s


class Hopper(hopper.Hopper):
    """The suite's hopper, rewarded for being upright times another function of its state."""

    def __init__(self, reward: Callable[[Any], Any], seed: int):
        """`reward`: of physics. `seed`: of the initial states."""
        super().__init__(hopping=True, random=seed)
        self._reward = reward

    def get_reward(self, physics: Any) -> Any:
        """The task's reward, 0 unless the hopper is upright."""
        return rewards.tolerance(physics.height(), _UPRIGHT) * self._reward(physics)


def _hopping_backward(physics: Any) -> Any:
    return at_least(-physics.speed(), _HOP_SPEED, margin=_HOP_SPEED / 2, value_at_margin=0.5)


def _make(reward: Callable[[Any], Any], seed: int) -> Environment:
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return Environment(physics, Hopper(reward, seed), time_limit=20, control_timestep=0.02)


TASKS = {
    "hop_backward": partial(_make, _hopping_backward),
    "flip": partial(_make, partial(spinning, direction=1)),
    "flip_backward": partial(_make, partial(spinning, direction=-1)),
}
