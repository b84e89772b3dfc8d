"""One of ExoRL's episode files, read strictly and written atomically. Nothing is ever unpickled.

A file is an npz archive of arrays with T + 1 rows: float32 `observation`, `action`, `reward` [rows, tasks] and
`discount` [rows, 1], float64 `physics`. Row i >= 1 says what the i-th action was and what came of it: (observation[i -
1], action[i], reward[i], discount[i], observation[i]) (ExoRL, replay_buffer.py). Row 0 of actions, rewards and
discounts, the dummy row, means nothing: action 0, reward 0, discount 1. It is dropped when a file is read and added
when one is written, and nothing else in ringrl knows of it. A file may lack `physics`, as URLB's do. A key of ringrl's
own, which it may lack too, is float32 `demonstrator`, with the rows of `action`: what a demonstrator would have done.
Where there is dm_env's `step_type` [rows], it must be that of one episode. Other keys are ignored.

A file's name is `episode_{index:06d}_{T}.npz` (ExoRL, Yarats et al. 2022) or `{timestamp}_{index}_{T}.npz` (URLB,
Laskin et al. 2021).
"""

import io
import re
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from ringrl.episode import Dims, Episode, clipped, refuse_pixels
from ringrl.errors import UserError
from ringrl.files import atomic_file
from ringrl.formats.archive import Member
from ringrl.formats.npy import MAX_BYTES, parse_npy

EpisodeFile = Path | Member
"""An episode file, in a folder or in an archive: it has a `name`, `read_bytes()`, and is small to pickle."""

_NAME = re.compile(r"(?P<prefix>episode|\d{8}T\d{6})_(?P<index>\d+)_(?P<length>\d+)\.npz")
_NEEDED = ("observation", "action", "reward", "discount")
_DTYPES = {name: np.float32 for name in (*_NEEDED, "demonstrator")} | {"physics": np.float64}
_STEP_TYPE = "step_type"
_FIRST, _LAST = 0, 2  # of dm_env.StepType
# What an observation does at a dummy row in the middle is compared with what it does elsewhere: with so many steps at
# least, of which at most one to so many may look like a dummy row, and must jump so many times as far as any other.
_STEPS_TO_COMPARE, _JUMP = 50, 3.0


class DummyRow(NamedTuple):
    """What row 0 of a file says of an action that nobody took."""

    action: Float32[np.ndarray, " action"]
    reward: Float32[np.ndarray, " tasks"]
    discount: float

    @property
    def standard(self) -> bool:
        """Whether it is ExoRL's: action 0, reward 0, discount 1."""
        return not (self.action.any() or self.reward.any()) and self.discount == 1.0


def read_episode(path: EpisodeFile | str, *, dims: Dims | None = None, clip: bool = False) -> Episode:
    """Read one file and check all that can be checked about it; its dummy row is dropped.

    Args:
        path: the file, or one that `list_episodes` found in an archive; its name must give the length as ExoRL's or
            URLB's do.
        dims: the widths that the arrays must have; None takes any.
        clip: clip actions to [-1, 1], for an environment that does so too.

    Raises:
        UserError: naming the file, if it is missing, truncated, pickled or no npz archive; if a key is missing or has
            the wrong dtype or shape; if the rows disagree with each other or with the name, or are of several episodes;
            if the arrays are no `Episode` (a number NaN or infinite, an action outside [-1, 1]); if the widths are not
            `dims`.
    """
    return read_with_dummy_row(path, dims=dims, clip=clip)[0]


def read_with_dummy_row(
    path: EpisodeFile | str, *, dims: Dims | None = None, clip: bool = False
) -> tuple[Episode, DummyRow]:
    """As `read_episode`, with the file's row 0 of actions, rewards and discounts, for those who check files."""
    path = Path(path) if isinstance(path, str) else path
    arrays = _load(path)
    rows = order_of(path)[2] + 1
    for name, array in arrays.items():
        if len(array) != rows:
            raise _bad(path, f"{name} has {len(array)} rows, but the name says {rows - 1} transitions, so {rows} rows")
    if rows < 2:
        raise _bad(path, "it has no transition")
    if arrays["discount"].shape[1] != 1:
        raise _bad(path, f"discount has shape {arrays['discount'].shape}, not ({rows}, 1)")
    action, reward, discount = arrays["action"], arrays["reward"], arrays["discount"][:, 0]
    shown = arrays["demonstrator"][1:] if "demonstrator" in arrays else None
    states = arrays.get("physics", np.zeros((rows, 0)))
    taken, shown = (clipped(each) if clip and each is not None else each for each in (action[1:], shown))
    assert taken is not None
    try:
        _check_single(arrays)
        episode = Episode(arrays["observation"], taken, reward[1:], discount[1:], states, shown)
    except UserError as error:
        raise _bad(path, str(error)) from error
    if dims is not None and episode.dims != dims:
        raise _bad(path, f"its widths are {episode.dims}; expected {dims}")
    return episode, DummyRow(action[0], reward[0], float(discount[0]))


def _load(path: EpisodeFile) -> dict[str, np.ndarray]:
    try:
        # Files are small: one read of the whole costs less than many of its parts.
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in _NEEDED if name not in members]
            if missing:
                raise _bad(path, f"it has no {', '.join(missing)}; it has {', '.join(members) or 'nothing'}")
            names = [name for name in (*_DTYPES, _STEP_TYPE) if name in members]
            if sum(members[name].file_size for name in names) > MAX_BYTES:
                raise _bad(path, f"its arrays unpack to more than {MAX_BYTES} bytes")
            _check_directory(archive, content, [info for name, info in members.items() if name not in names])
            return {name: _check_array(path, name, parse_npy(archive.read(members[name]))) for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such episode file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, MemoryError) as error:
        # A damaged header may ask for anything: a password, an unknown compression, terabytes.
        raise _bad(path, f"it is truncated or damaged ({error})") from error
    except ValueError as error:
        raise _bad(path, str(error)) from error


def _check_directory(archive: zipfile.ZipFile, content: bytes, ignored: list[zipfile.ZipInfo]) -> None:
    """Raise BadZipFile where the archive's directory hides a member, or misnames one: it may be `physics`."""
    end = content.rfind(b"PK\5\6")
    count = int.from_bytes(content[end + 10 : end + 12], "little")
    if count not in (len(archive.infolist()), 0xFFFF):  # the latter means a count that is elsewhere
        raise zipfile.BadZipFile(f"it has {len(archive.infolist())} of {count} members")
    for info in ignored:
        with suppress(RuntimeError), archive.open(info):  # one that is encrypted or oddly compressed is ignored, too
            pass


def _check_array(path: EpisodeFile, name: str, array: np.ndarray) -> np.ndarray:
    if name == _STEP_TYPE:
        if array.dtype.kind not in "iu":
            raise _bad(path, f"{name} is {array.dtype}, not whole numbers")
        return array.reshape(-1)
    if name == "observation":
        _refuse_pixels_in(path, array)
    if array.dtype != _DTYPES[name]:
        raise _bad(path, f"{name} is {array.dtype}, not {np.dtype(_DTYPES[name])}")
    if array.ndim == 1 and name in ("reward", "discount"):
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise _bad(path, f"{name} has shape {array.shape}, not (rows, width)")
    return array


def _refuse_pixels_in(path: EpisodeFile, observation: np.ndarray) -> None:
    try:
        refuse_pixels(observation, most_axes=2)
    except UserError as error:
        raise _bad(path, str(error)) from error


def _check_single(arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError where the rows are those of several episodes, one after another.

    A discount of 0 shows that by itself, and is what `Episode` looks at. Where time limits ended them it does not: then
    `step_type` says it, or the dummy row of the second: a row without action and reward at which the observation jumps.
    """
    row = _begins_again(arrays)
    if row is not None:
        raise UserError(
            f"row {row} begins another episode; write a file for each: rows 0 to {row - 1}, and those from {row} on"
        )


def _begins_again(arrays: dict[str, np.ndarray]) -> int | None:
    kinds = arrays.get(_STEP_TYPE)
    if kinds is not None:
        begins = [*(np.flatnonzero(kinds[1:] == _FIRST) + 1), *(np.flatnonzero(kinds[:-1] == _LAST) + 1)]
        return int(min(begins)) if begins else None
    empty = ~(arrays["action"][1:].any(axis=1) | arrays["reward"][1:].any(axis=1)) & (arrays["discount"][1:, 0] == 1)
    if not empty.any() or (~empty).sum() < _STEPS_TO_COMPARE * empty.sum():
        return None  # a policy that rests, which says nothing
    moved = np.abs(np.diff(arrays["observation"].astype(np.float64), axis=0))
    usual = moved[~empty].max(axis=0)
    jumps = ((moved > _JUMP * usual) & (usual > 0)).any(axis=1)
    return int((empty & jumps).argmax()) + 1 if (empty & jumps).any() else None


def _bad(path: EpisodeFile, reason: str) -> UserError:
    return UserError(f"{path}: bad episode file: {' '.join(reason.split())}")


def order_of(path: EpisodeFile) -> tuple[str, int, int]:
    """(timestamp or "", index, length), as the name gives them: files in this order are oldest first.

    Raises:
        UserError: if the name is not that of an episode file.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise _bad(path, "the name is neither episode_INDEX_LENGTH.npz nor TIMESTAMP_INDEX_LENGTH.npz")
    prefix = match["prefix"].removeprefix("episode")
    return prefix, int(match["index"]), int(match["length"])


def is_episode_name(name: str) -> bool:
    """Whether a file of this name is an episode file."""
    return _NAME.fullmatch(name) is not None


def write_episode(folder: Path | str, index: int, episode: Episode) -> Path:
    """Write `folder/episode_{index:06d}_{length}.npz`; it is complete or absent.

    Args:
        folder: made if it is missing.
        index: of the episode within the folder, 0 or more.
        episode: what to write; one reward column a task.

    Returns:
        The path of the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"episode_{index:06d}_{episode.length}.npz"
    write_file(path, episode)
    return path


def write_file(path: Path, episode: Episode, *, staging: Path | None = None) -> None:
    """Write an episode to `path` as `atomic_file` does; its name must give the length, as for `read_episode`."""
    shown: dict[str, Any] = (
        {} if episode.demonstrator is None else {"demonstrator": _after_dummy(episode.demonstrator, 0.0)}
    )
    states: dict[str, Any] = {"physics": episode.physics} if episode.physics.shape[1] else {}
    with atomic_file(path, staging=staging, durable=False) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            observation=episode.observation,
            action=_after_dummy(episode.action, 0.0),
            reward=_after_dummy(episode.reward, 0.0),
            discount=_after_dummy(episode.discount[:, None], 1.0),
            **states,
            **shown,
        )


def _after_dummy(values: Float32[np.ndarray, "steps width"], dummy: float) -> Float32[np.ndarray, "rows width"]:
    return np.concatenate([np.full((1, values.shape[1]), dummy, np.float32), values])
