"""Vintix data sets (Polubarov et al. 2025, and Vintix II): the learning histories of one task, as HDF5 files.

A data set is a folder: `NAME.json` names the task, and every `.h5` file is one history. A history is in groups of some
10,000 steps, named by their first and last step (`0-10000`), and an episode goes on from one group into the next. Of
every step there are `proprio_observation`, `action`, `reward` and `step_num`, its number in its episode: a new episode
begins where it is 0. Vintix II has what a demonstrator would have done besides. That an episode ended, and the
observation after its last action, are not recorded. Needs `pip install 'ringrl[vintix]'`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from pydantic import with_config
from typing_extensions import TypedDict

from ringrl.episode import Episode, refuse_pixels
from ringrl.errors import UserError, one_line
from ringrl.files import user_path
from ringrl.formats.imported import Bounds, to_unit
from ringrl.readers import RECORD, Text, read_json

_ARRAYS = ("proprio_observation", "action", "reward", "step_num")
_DEMONSTRATOR = ("demonstrator_action", "demonstrator_actions", "expert_action")  # as releases of Vintix II have it
_ROOM, _SHRUNK = 2**28, 20  # bytes of an array that any file may have; how many times its size a larger one may
_GROUP = re.compile(r"(\d{1,15})-(\d{1,15})", re.ASCII)


@with_config(RECORD)
class VintixRecord(TypedDict, total=False):
    """`NAME.json` beside the histories, as far as it is used."""

    task_name: Text
    action_type: str


@dataclass(frozen=True)
class VintixData:
    """An open data set.

    Attributes:
        name: its folder's.
        task: the id of the environment, such as Hopper-v4; None if it does not say.
        histories: its `.h5` files, by name.
    """

    name: str
    task: str | None
    histories: tuple[Path, ...]


def open_vintix(path: Path | str) -> VintixData:
    """The data set in a folder; or, of a `.h5` file, this history alone.

    Raises:
        UserError: if there is none, or its JSON file is damaged; if its actions are discrete; if h5py is not installed.
    """
    _import_h5py()
    path = user_path(path).absolute()
    folder = path.parent if path.suffix == ".h5" else path
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a folder of Vintix's .h5 files, or one of them")
    histories = (path,) if path.suffix == ".h5" else tuple(sorted(path.glob("*.h5")))
    if not histories or not folder.is_dir():
        raise UserError(f"{path}: has no .h5 file; give a folder of Vintix's, such as mujoco/hopper_v4")
    record, about = VintixRecord(), folder / f"{folder.resolve().name}.json"
    if about.is_file():
        record = read_json(about, VintixRecord, "fetch it again, or remove it and name the task with --task")
    if record.get("action_type", "continuous") != "continuous":
        raise UserError(
            f"{about}: its actions are {record.get('action_type')}; only continuous ones can be learnt here"
        )
    return VintixData(folder.resolve().name, record.get("task_name"), histories)


def action_width(history: Path) -> int:
    """Numbers in an action of a history. Raises UserError as `read_history`."""
    with _opened(history) as file:
        return _read_group(file, _groups(file)[0])["action"].shape[1]


def read_history(history: Path, bounds: Bounds, *, clip: bool = False) -> Iterator[Episode]:
    """The episodes of one `.h5` file in the order in which their learner collected them.

    The discount is 1 everywhere: the files do not say whether an episode ended or was cut off by a time limit. The last
    observation of an episode is repeated for the one after its last action.

    Args:
        history: the file.
        bounds: the actions that become -1 and 1.
        clip: as for `Episode.from_arrays`.

    Raises:
        UserError: naming the file and the group or the episode, if it is damaged or no history of Vintix's, if groups
            are missing, arrays are of other shapes than they should be, `step_num` does not count up, or what is stored
            is no `Episode`.
    """
    with _opened(history) as file:
        number, first, waiting = 0, 0, dict[str, Any]()
        for group in _groups(file):
            if int(group.partition("-")[0]) != first:
                raise UserError(f"group {group} follows {first} steps: a group is missing; fetch the file again")
            arrays = _read_group(file, group)
            first += len(arrays["step_num"])
            waiting = _joined(waiting, arrays, group)
            starts = np.flatnonzero(waiting["step_num"] == 0).tolist()
            for start, stop in pairwise(starts):
                yield _to_episode({k: v[start:stop] for k, v in waiting.items()}, number, bounds, clip)
                number += 1
            waiting = {name: values[starts[-1] :] for name, values in waiting.items()}
        yield _to_episode(waiting, number, bounds, clip)


def count_episodes(history: Path) -> int:
    """How many episodes a history has. Raises UserError as `read_history`."""
    with _opened(history) as file:
        return sum(int((_load(file, group, "step_num") == 0).sum()) for group in _groups(file))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An HDF5 file to read. Raises UserError, naming the file, for every error in the block."""
    try:
        with _import_h5py().File(path, "r") as file:
            yield file
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # of HDF5: of many kinds
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error


def _groups(file: Any) -> list[str]:
    """The names of the groups, first steps first."""
    names = [str(name) for name in file]
    foreign = [name for name in names if not _GROUP.fullmatch(name)]
    if foreign or not names:
        found = f"has {foreign[0]!r}" if foreign else "is empty"
        raise UserError(f"{found}, where a history of Vintix's has groups such as 0-10000")
    return sorted(names, key=lambda name: int(name.partition("-")[0]))


def _read_group(file: Any, group: str) -> dict[str, Shaped[np.ndarray, "steps ..."]]:
    """The arrays of a group, as many rows each, all but observations [rows] or [rows, width]."""
    missing = [name for name in _ARRAYS if name not in file[group]]
    if missing:
        raise UserError(f"group {group} has no {missing[0]}")
    wanted = (*_ARRAYS, *(name for name in _DEMONSTRATOR if name in file[group]))
    arrays = {name: _load(file, group, name) for name in wanted}
    rows = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if len(set(rows.values())) != 1 or not rows["step_num"]:
        raise UserError(f"group {group} has {', '.join(f'{n} of {name}' for name, n in rows.items())}")
    for name, values in arrays.items():
        if values.dtype.kind not in "fiub":
            raise UserError(f"group {group}: {name} is {values.dtype}, no numbers")
        if name in ("reward", "step_num"):
            if values.size != len(values):
                raise UserError(f"group {group}: {name} has shape {values.shape}: one number a step is expected")
            arrays[name] = values.reshape(-1)
        elif name == "proprio_observation":
            refuse_pixels(values, most_axes=2)
        elif values.ndim != 2:
            raise UserError(f"group {group}: {name} has shape {values.shape}: [steps, width] is expected")
    return {("demonstrator" if name in _DEMONSTRATOR else name): values for name, values in arrays.items()}


def _load(file: Any, group: str, name: str) -> np.ndarray:
    if file[group][name].nbytes > max(_ROOM, _SHRUNK * Path(file.filename).stat().st_size):
        raise UserError(f"group {group}: {name} is said to be larger than its file could be; fetch the file again")
    return np.asarray(file[group][name])


def _joined(waiting: dict[str, Any], arrays: dict[str, Any], group: str) -> dict[str, Any]:
    """The steps of an unfinished episode, and those of the group that goes on with it."""
    if waiting and waiting.keys() != arrays.keys():
        raise UserError(f"group {group} has {', '.join(arrays)}, the one before {', '.join(waiting)}")
    for name, values in waiting.items():
        if values.shape[1:] != arrays[name].shape[1:]:
            raise UserError(f"group {group}: {name} has shape {arrays[name].shape}, after {values.shape}")
    joined = {name: np.concatenate([waiting[name], values]) for name, values in arrays.items()} if waiting else arrays
    number = joined["step_num"]
    if number[0] != 0:
        raise UserError(f"group {group} begins with step {number[0]} of an episode: its beginning is missing")
    wrong = np.flatnonzero((number[1:] != 0) & (number[1:] <= number[:-1]))
    if len(wrong):
        at = int(wrong[0])
        raise UserError(f"group {group}: step_num {number[at + 1]} after {number[at]}: it rises, or begins again at 0")
    return joined


def _to_episode(arrays: dict[str, Any], number: int, bounds: Bounds, clip: bool) -> Episode:
    shown = arrays.get("demonstrator")
    try:
        return Episode.from_arrays(
            arrays["proprio_observation"],
            to_unit(arrays["action"], bounds),
            arrays["reward"],
            terminated=False,
            demonstrator=None if shown is None else to_unit(shown, bounds),
            clip=clip,
        )
    except UserError as error:
        raise UserError(f"episode {number}: {error}") from error


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"Vintix's data sets need h5py ({error}): pip install 'ringrl[vintix]'") from error
    return h5py
