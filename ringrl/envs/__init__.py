"""dm_control's suite and ExoRL's own tasks under Gymnasium's API."""

from ringrl.envs.suite import DMControlEnv, make
from ringrl.envs.tasks import domains, split_task, tasks
from ringrl.envs.vector import VectorEnv, make_vector

__all__ = ["DMControlEnv", "VectorEnv", "domains", "make", "make_vector", "split_task", "tasks"]
