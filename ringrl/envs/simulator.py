"""MuJoCo and dm_control, for rooms other than `envs`.

Whoever imports them first binds a renderer for the whole process. From here they come after `ringrl.envs` has chosen
one, in any order of imports; `tests/test_house.py` lets no other room import them by themselves.
"""

import mujoco
from dm_control import suite
from dm_control.rl.control import PhysicsError

__all__ = ["PhysicsError", "mujoco", "suite"]
