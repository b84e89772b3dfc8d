"""cheetah run_backward, flip and flip_backward."""

from collections.abc import Callable
from functools import partial
from typing import Any

from dm_control.rl.control import Environment
from dm_control.suite import cheetah

from ringrl.envs.custom.terms import at_least, spinning

_RUN_SPEED = 10.0  # m/s


class Cheetah(cheetah.Cheetah):
    """The suite's cheetah, paid by another function of its state."""

    def __init__(self, reward: Callable[[Any], Any], seed: int):
        """`reward`: of physics. `seed`: of the initial states."""
        super().__init__(random=seed)
        self._reward = reward

    def get_reward(self, physics: Any) -> Any:
        """The task's reward."""
        return self._reward(physics)


def _running_backward(physics: Any) -> Any:
    return at_least(-physics.speed(), _RUN_SPEED, margin=_RUN_SPEED, value_at_margin=0.0)


def _make(reward: Callable[[Any], Any], seed: int) -> Environment:
    physics = cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets())
    return Environment(physics, Cheetah(reward, seed), time_limit=10)


TASKS = {
    "run_backward": partial(_make, _running_backward),
    "flip": partial(_make, partial(spinning, direction=1)),
    "flip_backward": partial(_make, partial(spinning, direction=-1)),
}
