"""Minari data sets (Farama's format for offline data) <-> episodes.

Minari keeps T + 1 observations and T actions, rewards, terminations and truncations an episode, and what the simulator
said beside them in `infos`. It is an optional dependency: `pip install 'ringrl[minari]'`.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32, Float64

from ringrl.envs import DMControlEnv, make_env
from ringrl.envs.action_bounds import linear_bounds
from ringrl.envs.gymnasium_mujoco import gymnasium_tasks
from ringrl.episode import Episode, refuse_pixels
from ringrl.errors import UserError, one_line
from ringrl.files import atomic_folder, user_path
from ringrl.formats.archive import require_space
from ringrl.formats.imported import Bounds, to_unit

if TYPE_CHECKING:
    from minari import MinariDataset

# HDF5 keeps what it knows of every episode until the file is closed, which Minari does at the end of a request.
_EPISODES_AT_ONCE = 50
_HDF5_ROOM = 1 << 20  # bytes, for what it keeps beside the arrays
_FORMAT_MARKER = "data/metadata.json"


def import_minari() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import minari
    except ImportError as error:
        raise UserError(f"Minari's data sets need its package ({error}): pip install 'ringrl[minari]'") from error
    return minari


def open_dataset(name: str) -> "MinariDataset":
    """A data set by its id, among those that Minari has downloaded, or by the path of its folder.

    Raises:
        UserError: if there is none, or it is damaged or of a version that the installed Minari does not read.
    """
    minari, path = import_minari(), user_path(name)
    try:
        if path.is_dir():
            return minari.MinariDataset(path / "data" if (path / "data").is_dir() else path)
        return minari.load_dataset(name)
    except FileNotFoundError as error:
        raise UserError(
            f"{name}: no such folder, and Minari has no data set of that name here; `minari list local` shows those "
            f"that it has, `minari download {name}` fetches one"
        ) from error
    except Exception as error:  # of HDF5, JSON and Gymnasium: of many kinds
        raise UserError(f"{name}: not a data set that Minari reads: {one_line(error)}") from error


def task_of(dataset: "MinariDataset") -> str | None:
    """The id of the environment that a data set was collected in, which is also the name of its task."""
    return dataset.env_spec.id if dataset.env_spec is not None else None


def changed_settings(dataset: "MinariDataset") -> dict[str, Any]:
    """How the data set's environment differs from the registered one of its id; empty if it does not, or is unknown."""
    spec = dataset.env_spec
    if spec is None or spec.id not in gymnasium.registry:
        return {}
    registered = gymnasium.spec(spec.id)
    changed = {name: value for name, value in spec.kwargs.items() if registered.kwargs.get(name) != value}
    changed.pop("render_mode", None)
    if spec.additional_wrappers:
        changed["wrappers"] = [wrapper.name for wrapper in spec.additional_wrappers]
    if spec.max_episode_steps != registered.max_episode_steps:
        changed["max_episode_steps"] = spec.max_episode_steps
    return changed


def read_episodes(dataset: "MinariDataset", *, clip: bool = False) -> Iterator[Episode]:
    """All episodes of a data set, one at a time.

    Observations of Dict and Tuple spaces are flattened in the order of `gymnasium.spaces.flatten`: a Dict's parts by
    name, each part row by row. Actions are mapped from the action space's bounds onto [-1, 1]; where it has none they
    are taken as they are. The discount is 0 where the data set says terminated. `physics` is `infos["physics"]`, else
    [`infos["qpos"]`, `infos["qvel"]`], where they have a row for every observation; else of width 0.

    Raises:
        UserError: naming the data set and the episode, if a space is neither a Box nor made of Boxes, or one of pixels,
            an array is missing, of a wrong length, damaged, NaN or infinite, the episode was terminated or truncated
            before its last step, or an action is outside its bounds, unless `clip`.
    """
    bounds = action_bounds(dataset)
    episodes: Iterator[Any] = iter(())
    for index in range(dataset.total_episodes):
        where = f"{dataset.id}, episode {index}"
        try:
            if index % _EPISODES_AT_ONCE == 0:
                episodes = iter(dataset.iterate_episodes(dataset.episode_indices[index : index + _EPISODES_AT_ONCE]))
            data = next(episodes)
            observation = flatten_observations(dataset.observation_space, data.observations)
            yield _to_episode(data, observation, bounds, clip)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except Exception as error:  # of HDF5, which raises errors of many kinds
            raise UserError(f"{where}: cannot be read: {one_line(error)}") from error


def action_bounds(dataset: "MinariDataset") -> Bounds:
    """(lowest, highest) action; -1 and 1 where the action space has no bounds.

    Raises:
        UserError: if the actions are not real vectors.
    """
    space = dataset.action_space
    if not isinstance(space, spaces.Box):
        raise UserError(f"{dataset.id}: its actions are {type(space).__name__}; only Box actions can be learnt here")
    return linear_bounds(space.low, space.high)


def flatten_observations(space: spaces.Space, values: Any) -> Float32[np.ndarray, "rows observation"]:
    """Observations of many steps, [rows, ...] in every part, as `gymnasium.spaces.flatten` orders one step's.

    Raises:
        UserError: if a part of the space is not a Box, or is of pixels: bytes on two axes, or three axes or more.
    """
    if isinstance(space, spaces.Box):
        values = np.asarray(values)
        if values.ndim > 2:  # a vector of bytes is no picture
            refuse_pixels(values, most_axes=3)
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
            return values.reshape(len(values), -1).astype(np.float32)
    if isinstance(space, spaces.Dict):
        return np.concatenate([flatten_observations(part, values[k]) for k, part in space.spaces.items()], axis=1)
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, values, strict=True)
        return np.concatenate([flatten_observations(part, value) for part, value in parts], axis=1)
    raise UserError(f"observations have a {type(space).__name__} part; only Box, and Dict and Tuple of it, can be read")


def _to_episode(
    data: Any,
    observation: Float32[np.ndarray, "rows observation"],
    bounds: Bounds,
    clip: bool,
) -> Episode:
    actions = np.asarray(data.actions).reshape(len(data.actions), -1)
    return Episode.from_arrays(
        observation,
        to_unit(actions, bounds),
        np.asarray(data.rewards),
        terminated=np.asarray(data.terminations, bool),
        truncated=np.asarray(data.truncations, bool),
        physics=_physics(data.infos or {}, len(observation)),
        clip=clip,
    )


def _physics(infos: dict[str, Any], rows: int) -> Float64[np.ndarray, "rows state"] | None:
    names = ("physics",) if "physics" in infos else ("qpos", "qvel") if {"qpos", "qvel"} <= infos.keys() else ()
    parts = [np.asarray(infos[name], np.float64).reshape(len(infos[name]), -1) for name in names]
    return np.concatenate(parts, axis=1) if parts and all(len(part) == rows for part in parts) else None


def write_dataset(
    dataset_id: str, episodes: Iterable[Episode], task: str, *, description: str, overwrite: bool = False
) -> Path:
    """Write a data set that `minari.load_dataset(dataset_id)` finds, an episode at a time.

    Where `task` is one of Gymnasium's environments, its specification goes along, actions are mapped from [-1, 1] onto
    its bounds, and states are `infos["qpos"]` and `infos["qvel"]`; else states are `infos["physics"]`. An episode that
    does not end with discount 0 ends truncated.

    Args:
        dataset_id: such as `walker/rnd-v0`.
        episodes: with one reward column, of `task`.
        task: the task id.
        description: for people.
        overwrite: replace a data set of that id.

    Returns:
        Its folder, in Minari's (`MINARI_DATASETS_PATH`, else `~/.minari/datasets`).

    Raises:
        UserError: if the id is malformed, there is such a data set already, there are no episodes, or one of them has
            a discount besides 0 and 1.
    """
    minari = import_minari()
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage import get_dataset_path

    try:
        namespace, _, _ = parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise UserError(f"{dataset_id}: not a name for a Minari data set; write it as walker/rnd-v0") from error
    env = make_env(task) if task in gymnasium_tasks() else None
    episodes = iter(episodes)
    first = next(episodes, None)
    if first is None:
        raise UserError(f"no episodes to write {dataset_id} from")
    ends = np.stack([-np.ones(first.action.shape[1]), np.ones(first.action.shape[1])]).astype(np.float32)
    low, high = (ends if env is None else env.control(ends)).astype(np.float32)
    with atomic_folder(get_dataset_path(dataset_id), marker=_FORMAT_MARKER, overwrite=overwrite) as partial:
        # Minari takes every folder with `data` in it for a data set; this one is not one yet.
        writing = partial / "writing"
        storage = MinariStorage.new(
            writing,
            spaces.Box(-np.inf, np.inf, first.observation.shape[1:], np.float32),
            spaces.Box(low, high, dtype=np.float32),
            env_spec=None if env is None else gymnasium.spec(task),
        )
        about = {"dataset_id": dataset_id, "minari_version": minari.__version__, "description": description}
        storage.update_metadata(about)
        storage.update_episodes(_to_buffer(_with_room(episode, partial), env) for episode in chain([first], episodes))
        writing.rename(partial / "data")
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return get_dataset_path(dataset_id)


def _with_room(episode: Episode, folder: Path) -> Episode:
    """The episode. HDF5 may end the process where its disk is full, so that this is asked before.

    Raises:
        UserError: there may be no room for it.
    """
    arrays = (episode.observation, episode.action, episode.reward, episode.discount, episode.physics)
    require_space(folder, _HDF5_ROOM + 2 * sum(array.nbytes for array in arrays))
    return episode


def _to_buffer(episode: Episode, env: DMControlEnv | None) -> Any:
    """Minari's `EpisodeBuffer`."""
    from minari.data_collector import EpisodeBuffer

    action, states = episode.action, {"physics": episode.physics}
    if env is not None:
        positions = env.physics.model.nq
        action = env.control(action).astype(np.float32)
        states = {"qpos": episode.physics[:, :positions], "qvel": episode.physics[:, positions:]}
    if not np.isin(episode.discount, (0.0, 1.0)).all():
        raise UserError("an episode has discounts besides 0 and 1, for which Minari has no place")
    terminated: Bool[np.ndarray, " steps"] = episode.discount == 0.0
    truncated = np.zeros_like(terminated)
    truncated[-1] = not terminated[-1]
    arrays: dict[str, Any] = {
        "observations": episode.observation,
        "actions": action,
        "rewards": episode.reward[:, 0],
        "terminations": terminated,
        "truncations": truncated,
    }
    return EpisodeBuffer(**arrays, infos=states if episode.physics.shape[1] else None)
