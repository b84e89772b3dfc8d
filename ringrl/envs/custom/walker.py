"""walker flip: a somersaulting walker."""

from typing import Any

from dm_control.rl.control import Environment
from dm_control.suite import walker

from ringrl.envs.custom.terms import spinning


class Flip(walker.PlanarWalker):
    """Turn about the y axis, rewarded most while upright."""

    def __init__(self, seed: int):
        """`seed`: of the initial states."""
        super().__init__(move_speed=0, random=seed)  # without a speed the suite's task is walker stand

    def get_reward(self, physics: Any) -> Any:
        """The suite's reward of walker stand, scaled by the spin as the suite scales it by the speed."""
        return super().get_reward(physics) * (5 * spinning(physics, 1) + 1) / 6


def _flip(seed: int) -> Environment:
    physics = walker.Physics.from_xml_string(*walker.get_model_and_assets())
    return Environment(physics, Flip(seed), time_limit=25, control_timestep=0.025)


TASKS = {"flip": _flip}
