"""dm_control's suite and ExoRL's own tasks, and families of hidden tasks, under Gymnasium's API."""

from ringrl.envs.custom.hidden import HELD_OUT
from ringrl.envs.suite import DMControlEnv, make_env
from ringrl.envs.tasks import domains, is_hidden, split_task, tasks
from ringrl.envs.vector import VectorEnv, make_vector

__all__ = [
    "HELD_OUT",
    "DMControlEnv",
    "VectorEnv",
    "domains",
    "is_hidden",
    "make_env",
    "make_vector",
    "split_task",
    "tasks",
]
