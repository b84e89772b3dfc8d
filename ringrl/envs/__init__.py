"""dm_control's suite, ExoRL's own tasks, families of hidden tasks, and Gymnasium's, under Gymnasium's API."""

from ringrl.envs.graphics import bind_backend

bind_backend()  # first: nothing that is imported below could undo another renderer

from ringrl.envs.custom.library import library_of, with_different_cues  # noqa: E402
from ringrl.envs.custom.reward_family import HELD_OUT, VALIDATION, RewardFamily  # noqa: E402
from ringrl.envs.env_pool import EnvPool  # noqa: E402
from ringrl.envs.suite import DMControlEnv, make_env  # noqa: E402
from ringrl.envs.tasks import (  # noqa: E402
    domains,
    family_of,
    is_gymnasium,
    is_hidden,
    is_task,
    is_visible,
    members_in,
    split_task,
    tasks,
)
from ringrl.envs.vector import VectorEnv, make_groups, make_vector  # noqa: E402

__all__ = [
    "HELD_OUT",
    "VALIDATION",
    "DMControlEnv",
    "EnvPool",
    "RewardFamily",
    "VectorEnv",
    "domains",
    "family_of",
    "is_gymnasium",
    "is_hidden",
    "is_task",
    "is_visible",
    "library_of",
    "make_env",
    "make_groups",
    "make_vector",
    "members_in",
    "split_task",
    "tasks",
    "with_different_cues",
]
