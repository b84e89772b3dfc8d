"""The episodes of `benchmarks.store`, and the formats in which they are written and read."""

import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ringrl import envs
from ringrl.episode import Episode
from ringrl.formats.exorl import write_episode
from ringrl.store.episode_store import open_store

TASK, LENGTH = "walker_run", 1000


def roll_out(count: int, path: Path) -> None:
    """Save the rows of walker's episodes under uniformly random actions."""
    env, rng, episodes = envs.make_env(TASK), np.random.default_rng(0), []
    for seed in range(count):
        first, info = env.reset(seed=seed)
        rows = [(first, np.zeros(6, np.float32), 0.0, info["physics"])]
        for _ in range(LENGTH):
            action = rng.uniform(-1, 1, 6).astype(np.float32)
            observation, reward, _, _, info = env.step(action)
            rows.append((observation, action, float(reward), info["physics"]))
        episodes.append([np.stack(column) for column in zip(*rows, strict=True)])
    env.close()
    names = ("observation", "action", "reward", "physics")
    arrays: dict[str, Any] = {}
    for name, values in zip(names, zip(*episodes, strict=True), strict=True):
        arrays[name] = np.stack(values)
    np.savez(path, **arrays)


def episodes_of(folder: Path, count: int) -> Iterator[Episode]:
    """The rollouts, again and again."""
    with np.load(folder / "rollouts.npz") as file:
        rows = {name: file[name] for name in file.files}
    for index in range(count):
        each = {name: values[index % len(values)] for name, values in rows.items()}
        reward, ones = each["reward"].astype(np.float32)[1:, None], np.ones(LENGTH, np.float32)
        yield Episode(each["observation"], each["action"][1:], reward, ones, each["physics"])


def write_npz(folder: Path, count: int) -> None:
    """One file an episode; different ones are compressed once and copied, as compressing all would take minutes."""
    names = [f"episode_{index:06d}_{LENGTH}.npz" for index in range(count)]
    with np.load(folder / "rollouts.npz") as file:
        different = min(len(file["reward"]), count)
    for index, episode in enumerate(episodes_of(folder, different)):
        write_episode(folder / "npz", index, episode)
    for index in range(different, count):
        shutil.copyfile(folder / "npz" / names[index % different], folder / "npz" / names[index])


def write_minari(folder: Path, count: int) -> None:
    """Minari's own file, `main_data.hdf5`, through its own classes."""
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    observation, action = Box(-np.inf, np.inf, (24,), np.float32), Box(-1, 1, (6,), np.float32)
    storage = MinariStorage.new(folder / "h5py", observation_space=observation, action_space=action)

    def buffers() -> Iterator[Any]:
        for index, episode in enumerate(episodes_of(folder, count)):
            columns: dict[str, Any] = {
                "observations": episode.observation,
                "actions": episode.action,
                "rewards": episode.reward[:, 0],
                "terminations": episode.discount == 0,
                "truncations": np.arange(LENGTH) == LENGTH - 1,
            }
            yield EpisodeBuffer(id=index, **columns)

    storage.update_episodes(buffers())
    storage.update_metadata({"dataset_id": "walker/random-v0", "minari_version": version("minari")})


def readers(folder: Path, count: int) -> dict[str, Callable[[list[int]], list[Any]]]:
    """Subject -> (episodes) -> their arrays."""
    import h5py
    from minari import MinariDataset

    store = open_store(folder / "store", memory_limit=count * (LENGTH + 1) * 4)
    assert store.lengths[0] == LENGTH  # the offsets are read now, as training has when it reads its first chain
    file, minari = h5py.File(folder / "h5py" / "main_data.hdf5"), MinariDataset(folder / "h5py")

    def npz(chain: list[int]) -> list[Any]:
        found = []
        for episode in chain:
            with np.load(folder / "npz" / f"episode_{episode:06d}_{LENGTH}.npz") as archive:
                found.append([archive[name] for name in ("observation", "action", "reward", "discount")])
        return found

    def hdf5(chain: list[int]) -> list[Any]:
        names = ("observations", "actions", "rewards", "terminations")
        groups: list[Any] = [file[f"episode_{episode}"] for episode in chain]
        return [[group[name][()] for name in names] for group in groups]

    return {
        "ringrl": lambda chain: store.read_many([(episode, 0, LENGTH) for episode in chain], TASK),
        "npz": npz,
        "h5py": hdf5,
        "minari": lambda chain: list(minari.iterate_episodes(chain)),
    }
