"""Reward-free data, of a point mass unless said otherwise, with the features of a family: correlated actions."""

from pathlib import Path

import numpy as np

from ringrl.collect.record import record_episode
from ringrl.envs import family_of, make_env
from ringrl.relabelling.features import FeatureReader
from ringrl.store.episode_store import DataSource, Store, build, open_store

FAMILY = "point_mass_goal_30mm"
HIDDEN, VISIBLE = f"hidden_{FAMILY}", f"visible_{FAMILY}"


def reward_free_store(
    path: Path,
    episodes: int = 8,
    steps: int = 22,
    *,
    task: str = "point_mass_easy",
    name: str = FAMILY,
    features: bool = True,
) -> Store:
    """A store of so many episodes of so many environment steps of a task, with the features of a family."""
    rng = np.random.default_rng(0)

    def recorded():
        for seed in range(episodes):
            env = make_env(task, seed=seed, action_repeat=4, time_limit=steps)
            drift = rng.uniform(-1, 1, env.action_space.shape)
            yield (
                record_episode(
                    env, lambda _, drift=drift: (drift + rng.normal(0, 0.3, drift.shape)).clip(-1, 1).astype(np.float32)
                )[0],
                0,
            )

    family = family_of(f"hidden_{name}")
    assert family is not None
    build(
        path,
        recorded(),
        domain=family.domain,
        tasks=(task,),
        sources=[DataSource("one", "one", "correlated")],
        provenance={},
        features={name: FeatureReader(family)} if features else {},
    )
    return open_store(path)
