"""Folders and archives of ExoRL's episode files (`ringrl.formats.episode_file`), oldest first, bad files among them.

The files are in a folder, or in a zip archive that is read as it is. Other files of a name with `.npz` in it, such as
`stats.npz`, a browser's `episode_000000_1000 (1).npz` or `EPISODE_000000_1000.NPZ`, are foreign: they are no episodes,
or are one that would be missing, and are never passed over without a word.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.formats.archive import Member, episode_members, is_archive, names_npz
from ringrl.formats.episode_file import (
    DummyRow,
    EpisodeFile,
    is_episode_name,
    order_of,
    read_episode,
    read_with_dummy_row,
    write_episode,
    write_file,
)

__all__ = [
    "DummyRow",
    "EpisodeFile",
    "list_episodes",
    "read_episode",
    "read_folder",
    "read_with_dummy_row",
    "write_episode",
    "write_file",
]

QUARANTINE = "quarantine"

# A folder's files are judged by the widths that most of the first ones have, lest an odd first file condemn the rest.
_FILES_FOR_DIMS = 5


def list_episodes(folder: Path | str) -> list[EpisodeFile]:
    """The episode files of a folder or archive, oldest first: by timestamp, if the names have one, then by index.

    Args:
        folder: the folder of the files, or the one above it that contains `buffer/`; or a .zip of either.

    Raises:
        UserError: if the folder is missing, has no episode file, or has a foreign one, which is named; as
            `ringrl.formats.archive.audit` for an archive.
    """
    files, foreign = _list_all(user_path(folder))
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise UserError(f"{_foreign(foreign[0])}{more}; rename or remove it, or leave it out with --skip-bad")
    return files


def _list_all(folder: Path) -> tuple[list[EpisodeFile], list[EpisodeFile]]:
    """(episode files, oldest first; foreign files, by name)."""
    if is_archive(folder):
        found: list[EpisodeFile] = [*episode_members(folder)]
    elif not folder.is_dir():
        raise UserError(f"{folder}: no such folder of episodes")
    else:
        buffer = folder / "buffer"
        within = (buffer if buffer.is_dir() else folder).iterdir()
        found = [path for path in within if names_npz(path.name) and not path.is_dir()]
    files = [path for path in found if is_episode_name(path.name)]
    foreign = sorted((path for path in found if not is_episode_name(path.name)), key=lambda path: path.name)
    if not found:
        raise UserError(f"{folder}: no episode files; expected episode_INDEX_LENGTH.npz here or in buffer/")
    if not files:
        raise UserError(f"{_foreign(foreign[0])}; {folder} has no file of such a name")
    return sorted(files, key=order_of), foreign


def _foreign(path: EpisodeFile) -> str:
    return f"{path}: bad episode file: the name is neither episode_INDEX_LENGTH.npz nor TIMESTAMP_INDEX_LENGTH.npz"


class read_folder(Iterator[tuple[EpisodeFile, Episode]]):  # noqa: N801 - used as a function
    """The episodes of a folder or archive with their files, one at a time, oldest first.

    With `skip_bad`, a bad or foreign file is moved to `quarantine/` beside it, its reason is appended to
    `quarantine/reasons.txt`, and the reading goes on. From an archive nothing can be moved: the reasons are written to
    `ARCHIVE.zip.reasons.txt`, each once, and the files are skipped again the next time. Widths are judged by those that
    most of the first files have.

    Attributes:
        files: all episode files, bad ones included.
        dims: the widths that every episode has.
        reasons: why files were skipped so far, a line each, which names the file.

    Raises:
        UserError: from the constructor as `list_episodes`, and if no file is good; from iteration as `read_episode`.
            With `skip_bad` neither a bad nor a foreign file is an error.
    """

    def __init__(self, folder: Path | str, *, skip_bad: bool = False, move: bool = True, clip: bool = False):
        """List the files of `folder`.

        Args:
            folder: as for `list_episodes`.
            skip_bad: go on without bad and foreign files.
            move: whether those are put aside; else they are left as they are.
            clip: as for `read_episode`.
        """
        self.files, foreign = _list_all(user_path(folder)) if skip_bad else (list_episodes(folder), [])
        self.reasons: list[str] = []
        self._skip_bad, self._move, self._clip = skip_bad, move, clip
        self._remaining = iter(self.files)
        self.dims = _usual_dims(self.files, clip)
        for path in foreign:
            self.skip(path, _foreign(path))

    @property
    def skipped(self) -> int:
        """Files skipped so far."""
        return len(self.reasons)

    def __len__(self) -> int:
        """The number of episode files, bad ones included."""
        return len(self.files)

    def __next__(self) -> tuple[EpisodeFile, Episode]:
        """The next good episode."""
        for path in self._remaining:
            try:
                episode = read_episode(path, dims=self.dims, clip=self._clip)
            except UserError as error:
                if not self._skip_bad:
                    raise
                self.skip(path, str(error))
                continue
            return path, episode
        raise StopIteration

    def skip(self, path: EpisodeFile, reason: str) -> None:
        """Put a bad file aside, with the reason, as iteration does."""
        if self._move:
            _quarantine(path, reason)
        self.reasons.append(reason)


def _usual_dims(files: list[EpisodeFile], clip: bool) -> Dims:
    found: Counter[Dims] = Counter()
    errors: list[UserError] = []
    for path in files:
        try:
            found[read_episode(path, clip=clip).dims] += 1
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
