"""dm_control's suite, ExoRL's own tasks, families of hidden tasks, and Gymnasium's, under Gymnasium's API."""

from ringrl.envs.graphics import choose_backend

choose_backend()  # dm_control binds its renderer when it is imported

from ringrl.envs.custom.hidden import HELD_OUT  # noqa: E402
from ringrl.envs.env_pool import EnvPool  # noqa: E402
from ringrl.envs.suite import DMControlEnv, make_env  # noqa: E402
from ringrl.envs.tasks import domains, is_hidden, split_task, tasks  # noqa: E402
from ringrl.envs.vector import VectorEnv, make_groups, make_vector  # noqa: E402

__all__ = [
    "HELD_OUT",
    "DMControlEnv",
    "EnvPool",
    "VectorEnv",
    "domains",
    "is_hidden",
    "make_env",
    "make_groups",
    "make_vector",
    "split_task",
    "tasks",
]
