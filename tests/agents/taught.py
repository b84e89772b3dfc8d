"""A store of point mass with features, and a TD3 that sees the member: what students of a teacher are tested with."""

from pathlib import Path

import numpy as np

import ringrl
from ringrl.envs import make_env
from ringrl.store.builder import build
from tests.builders import random_episode

HIDDEN, VISIBLE = "hidden_point_mass_goal_30mm", "visible_point_mass_goal_30mm"
STEPS, EPISODES = 12, 5


def make_taught(path: Path, families: tuple[str, ...], *, updates: int, batch: int) -> Path:
    """`pm.store` with the features of `families`, and `teacher`, a run of so many updates."""
    rng, env = np.random.default_rng(0), make_env("point_mass_easy", seed=0)
    episodes = (random_episode(env, STEPS, rng) for _ in range(EPISODES))
    position = lambda episode: episode.physics[:, :2].astype(np.float32)  # noqa: E731
    features = dict.fromkeys(families, position)
    build(path / "pm.store", episodes, domain="point_mass", tasks=("point_mass_easy",), features=features)
    data = {"store": str(path / "pm.store"), "task": VISIBLE, "action_repeat": 2}
    training = {"steps": updates, "log_every": updates, "checkpoint_every": updates}
    agent = {"name": "td3", "hidden": [8], "batch": batch}
    ringrl.train({"data": data, "agent": agent, "training": training}, out=path / "teacher")
    return path
