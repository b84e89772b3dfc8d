"""A family of rewards of a toy, and a store of it whose numbers are worked out by hand."""

from pathlib import Path

import numpy as np

from ringrl.envs import RewardFamily
from ringrl.episode import Episode
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.store.builder import build
from ringrl.store.episode_store import DataSource, open_store


def _no_environment(seed: int):
    raise AssertionError("a toy has no environment")


# A place is one number; a member pays 1 where the place is its own number. Members drawn as tasks are 100 and 101.
FAMILY = RewardFamily(
    name="toy_place",
    domain="toy",
    base=_no_environment,
    features=("place",),
    parameters=("wanted",),
    read=lambda physics: physics,
    pay=lambda features, parameter: (features[..., 0] == parameter[..., 0]).astype(np.float64),
    draw=lambda rng, count: rng.integers(100, 102, (count, 1)).astype(np.float64),
    fit=lambda rng, features: features,
)


def toy_store(path: Path, visited: list[list[int]], sources: list[int] | None = None):
    """An episode a list: the numbers of where it is, the first one before any step; a step's action is its index / 10.

    An observation is (place, episode).
    """

    def episodes():
        for index, each in enumerate(visited):
            place = np.array(each, np.float32)[:, None]
            observation = np.concatenate([place, np.full_like(place, index)], axis=1)
            action = np.arange(len(each) - 1, dtype=np.float32)[:, None] / 10
            zeros = np.zeros((len(action), 1), np.float32)
            of = 0 if sources is None else sources[index]
            yield Episode(observation, action, zeros, np.ones(len(action), np.float32), place.astype(np.float64)), of

    names = [DataSource(str(each), str(each)) for each in range(1 + max(sources or [0]))]
    features = {FAMILY.name: lambda episode: episode.physics.astype(np.float32)}
    return open_store(build(path, episodes(), domain="toy", tasks=("toy_none",), sources=names, features=features))


def toy_episodes(path: Path, visited: list[list[int]], sources: list[int] | None = None, share: float = 1.0):
    """Such a store's episodes, paid by members of which a `share` are by hindsight."""
    return RelabelledEpisodes(toy_store(path, visited, sources), FAMILY, hindsight_share=share)
