"""Reward-free data of a point mass, with the features of its goals: trajectories of correlated actions."""

from pathlib import Path

import numpy as np

from ringrl.collect.record import record_episode
from ringrl.envs import family_of, make_env
from ringrl.relabelling.features import FeatureReader
from ringrl.store.episode_store import DataSource, Store, build, open_store

FAMILY = "point_mass_goal_30mm"
HIDDEN, VISIBLE = f"hidden_{FAMILY}", f"visible_{FAMILY}"


def reward_free_store(path: Path, episodes: int = 8, steps: int = 22, *, features: bool = True) -> Store:
    """A store of so many episodes of so many environment steps, whose task is point_mass_easy."""
    rng = np.random.default_rng(0)

    def recorded():
        for seed in range(episodes):
            env = make_env("point_mass_easy", seed=seed, action_repeat=4, time_limit=steps)
            drift = rng.uniform(-1, 1, 2)
            yield (
                record_episode(
                    env, lambda _, drift=drift: (drift + rng.normal(0, 0.3, 2)).clip(-1, 1).astype(np.float32)
                )[0],
                0,
            )

    family = family_of(HIDDEN)
    assert family is not None
    build(
        path,
        recorded(),
        domain="point_mass",
        tasks=("point_mass_easy",),
        sources=[DataSource("one", "one", "correlated")],
        provenance={},
        features={FAMILY: FeatureReader(family)} if features else {},
    )
    return open_store(path)
