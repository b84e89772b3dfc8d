"""ExoRL's episode files, read strictly and written atomically. Nothing is ever unpickled.

A file is an npz archive of arrays with T + 1 rows: float32 `observation`, `action`, `reward` [rows, tasks] and
`discount` [rows, 1], float64 `physics`. Row i >= 1 says what the i-th action was and what came of it: (observation[i -
1], action[i], reward[i], discount[i], observation[i]) (ExoRL, replay_buffer.py). Row 0 of actions, rewards and
discounts, the dummy row, means nothing: action 0, reward 0, discount 1. It is dropped when a file is read and added
when one is written, and nothing else in ringrl knows of it. A key of ringrl's own, which a file may lack, is float32
`demonstrator`, with the rows of `action`: what a demonstrator would have done. Other keys are ignored.

A file's name is `episode_{index:06d}_{T}.npz` (ExoRL, Yarats et al. 2022) or `{timestamp}_{index}_{T}.npz` (URLB,
Laskin et al. 2021). The files are in a folder, or in a zip archive that is read as it is.
"""

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.files import atomic_file
from ringrl.formats.archive import Member, episode_members, is_archive
from ringrl.formats.npy import MAX_BYTES, parse_npy

EpisodeFile = Path | Member
"""An episode file, in a folder or in an archive: it has a `name`, `read_bytes()`, and is small to pickle."""

QUARANTINE = "quarantine"

_NAME = re.compile(r"(?P<prefix>episode|\d{8}T\d{6})_(?P<index>\d+)_(?P<length>\d+)\.npz")
_NEEDED = ("observation", "action", "reward", "discount", "physics")
_DTYPES = {name: np.float32 for name in (*_NEEDED, "demonstrator")} | {"physics": np.float64}
# A folder's files are judged by the widths that most of the first ones have, lest an odd first file condemn the rest.
_FILES_FOR_DIMS = 5


class DummyRow(NamedTuple):
    """What row 0 of a file says of an action that nobody took."""

    action: Float32[np.ndarray, " action"]
    reward: Float32[np.ndarray, " tasks"]
    discount: float

    @property
    def standard(self) -> bool:
        """Whether it is ExoRL's: action 0, reward 0, discount 1."""
        return not (self.action.any() or self.reward.any()) and self.discount == 1.0


def read_episode(path: EpisodeFile | str, *, dims: Dims | None = None) -> Episode:
    """Read one file and check all that can be checked about it; its dummy row is dropped.

    Args:
        path: the file, or one that `list_episodes` found in an archive; its name must give the length as ExoRL's or
            URLB's do.
        dims: the widths that the arrays must have; None takes any.

    Raises:
        UserError: naming the file, if it is missing, truncated, pickled or no npz archive; if a key is missing or has
            the wrong dtype or shape; if the rows disagree with each other or with the name; if the arrays are no
            `Episode` (a number NaN or infinite, an action outside [-1, 1]); if the widths are not `dims`.
    """
    return read_with_dummy_row(path, dims=dims)[0]


def read_with_dummy_row(path: EpisodeFile | str, *, dims: Dims | None = None) -> tuple[Episode, DummyRow]:
    """As `read_episode`, with the file's row 0 of actions, rewards and discounts, for those who check files."""
    path = Path(path) if isinstance(path, str) else path
    arrays = _load(path)
    rows = _parse_name(path)[2] + 1
    for name, array in arrays.items():
        if len(array) != rows:
            raise _bad(path, f"{name} has {len(array)} rows, but the name says {rows - 1} transitions, so {rows} rows")
    if rows < 2:
        raise _bad(path, "it has no transition")
    if arrays["discount"].shape[1] != 1:
        raise _bad(path, f"discount has shape {arrays['discount'].shape}, not ({rows}, 1)")
    action, reward, discount = arrays["action"], arrays["reward"], arrays["discount"][:, 0]
    shown = arrays["demonstrator"][1:] if "demonstrator" in arrays else None
    try:
        episode = Episode(arrays["observation"], action[1:], reward[1:], discount[1:], arrays["physics"], shown)
    except UserError as error:
        raise _bad(path, str(error)) from error
    if dims is not None and episode.dims != dims:
        raise _bad(path, f"its widths are {episode.dims}; expected {dims}")
    return episode, DummyRow(action[0], reward[0], float(discount[0]))


def _load(path: EpisodeFile) -> dict[str, np.ndarray]:
    try:
        # Files are small: one read of the whole costs less than many of its parts.
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in _NEEDED if name not in members]
            if missing:
                raise _bad(path, f"it has no {', '.join(missing)}; it has {', '.join(members) or 'nothing'}")
            names = [name for name in _DTYPES if name in members]
            if sum(members[name].file_size for name in names) > MAX_BYTES:
                raise _bad(path, f"its arrays unpack to more than {MAX_BYTES} bytes")
            return {name: _check_array(path, name, parse_npy(archive.read(members[name]))) for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such episode file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, MemoryError) as error:
        # A damaged header may ask for anything: a password, an unknown compression, terabytes.
        raise _bad(path, f"it is truncated or damaged ({error})") from error
    except ValueError as error:
        raise _bad(path, str(error)) from error


def _check_array(path: EpisodeFile, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != _DTYPES[name]:
        raise _bad(path, f"{name} is {array.dtype}, not {np.dtype(_DTYPES[name])}")
    if array.ndim == 1 and name in ("reward", "discount"):
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise _bad(path, f"{name} has shape {array.shape}, not (rows, width)")
    return array


def _bad(path: EpisodeFile, reason: str) -> UserError:
    return UserError(f"{path}: bad episode file: {' '.join(reason.split())}")


def _parse_name(path: EpisodeFile) -> tuple[str, int, int]:
    """(timestamp or "", index, length)."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise _bad(path, "the name is neither episode_INDEX_LENGTH.npz nor TIMESTAMP_INDEX_LENGTH.npz")
    prefix = match["prefix"].removeprefix("episode")
    return prefix, int(match["index"]), int(match["length"])


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
    with atomic_file(path, staging=staging, durable=False) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            observation=episode.observation,
            action=_after_dummy(episode.action, 0.0),
            reward=_after_dummy(episode.reward, 0.0),
            discount=_after_dummy(episode.discount[:, None], 1.0),
            physics=episode.physics,
            **shown,
        )


def _after_dummy(values: Float32[np.ndarray, "steps width"], dummy: float) -> Float32[np.ndarray, "rows width"]:
    return np.concatenate([np.full((1, values.shape[1]), dummy, np.float32), values])


def list_episodes(folder: Path | str) -> list[EpisodeFile]:
    """The episode files of a folder or archive, oldest first: by timestamp, if the names have one, then by index.

    Args:
        folder: the folder of the files, or the one above it that contains `buffer/`; or a .zip of either.

    Raises:
        UserError: if the folder is missing or has no episode file, or holds an npz file with another kind of name;
            as `ringrl.formats.archive.audit` for an archive.
    """
    folder = Path(folder)
    if is_archive(folder):
        return sorted(episode_members(folder), key=_parse_name)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of episodes")
    buffer = folder / "buffer"
    files = [path for path in (buffer if buffer.is_dir() else folder).glob("*.npz") if not path.name.startswith(".")]
    if not files:
        raise UserError(f"{folder}: no episode files; expected episode_INDEX_LENGTH.npz here or in buffer/")
    return sorted(files, key=_parse_name)


class read_folder(Iterator[tuple[EpisodeFile, Episode]]):  # noqa: N801 - used as a function
    """The episodes of a folder or archive with their files, one at a time, oldest first.

    With `skip_bad`, a bad file is moved to `quarantine/` beside it, its reason is appended to `quarantine/reasons.txt`,
    and the reading goes on; `skipped` counts such files. From an archive nothing can be moved: the reasons are written
    to `ARCHIVE.zip.reasons.txt`, each once, and the files are skipped again the next time. Widths are judged by those
    that most of the first files have.

    Attributes:
        files: all files, bad ones included.
        dims: the widths that every episode has.
        skipped: bad files met so far.

    Raises:
        UserError: from the constructor as `list_episodes`, and if no file is good; from iteration as `read_episode`,
            unless `skip_bad`.
    """

    def __init__(self, folder: Path | str, *, skip_bad: bool = False):
        """List the files of `folder`."""
        self.files = list_episodes(folder)
        self.skipped = 0
        self._skip_bad = skip_bad
        self._remaining = iter(self.files)
        self.dims = _usual_dims(self.files)

    def __len__(self) -> int:
        """The number of files, bad ones included."""
        return len(self.files)

    def __next__(self) -> tuple[EpisodeFile, Episode]:
        """The next good episode."""
        for path in self._remaining:
            try:
                episode = read_episode(path, dims=self.dims)
            except UserError as error:
                if not self._skip_bad:
                    raise
                self.skip(path, str(error))
                continue
            return path, episode
        raise StopIteration

    def skip(self, path: EpisodeFile, reason: str) -> None:
        """Put a bad file aside, with the reason, as iteration does."""
        _quarantine(path, reason)
        self.skipped += 1


def _usual_dims(files: list[EpisodeFile]) -> Dims:
    found: Counter[Dims] = Counter()
    errors: list[UserError] = []
    for path in files:
        try:
            found[read_episode(path).dims] += 1
        except UserError as error:
            errors.append(error)
        if found.total() == _FILES_FOR_DIMS:
            break
    if not found:
        raise errors[0]
    return found.most_common(1)[0][0]


def _quarantine(path: EpisodeFile, reason: str) -> None:
    """Move a bad file to `quarantine/` beside it, with the reason; of one in an archive only the reason is kept."""
    if isinstance(path, Member):
        reasons = path.archive.with_name(f"{path.archive.name}.reasons.txt")
    else:
        reasons = path.parent / QUARANTINE / "reasons.txt"
    try:
        if isinstance(path, Path):
            reasons.parent.mkdir(exist_ok=True)
            path.replace(reasons.parent / path.name)
        with reasons.open("a+", encoding="utf-8") as file:
            file.seek(0)
            if reason not in file.read().splitlines():
                file.write(f"{reason}\n")
    except FileNotFoundError:
        return  # another process has put it aside
    except OSError as error:
        raise UserError(f"{reason}; and it cannot be put aside in {reasons.parent} ({error.strerror})") from error
