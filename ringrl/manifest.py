"""`SHA256SUMS`: the hash of every file of a folder, written last, and checked when the files are read.

The file is that of coreutils, so that `cd FOLDER && sha256sum -c SHA256SUMS` checks a copy without ringrl. A folder is
sealed whole (`seal`), or some of its files are replaced as one fact (`replace_together`): at the moment at which
SHA256SUMS is renamed all of them are new. What was not renamed by then is beside them, under a name that begins with
its hash, and is read from there. Folders of an earlier ringrl have no such file and are read unchecked.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ringrl.errors import UserError
from ringrl.files import sync, write_bytes
from ringrl.locks import exclusive

MANIFEST = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_TOTAL = re.compile(r"# ringrl: (\d+) files, (\d+) bytes")
_THREADS = 8
_STAGED, _LOCK = ".staged-", ".manifest.lock"
_CUT = "a copy that was cut off?"
_noted: set[str] = set()
_log = logging.getLogger(__name__)


class DamagedError(UserError):
    """A file is missing, or is not what was written."""


def seal(folder: Path, *, staging: Path | None = None) -> None:
    """Write the manifest of all that is in a finished folder; everything is on the disk then, not only in memory.

    Args:
        folder: with its subfolders; no other process writes in it.
        staging: the folder of the manifest's temporary file, where `folder` may survive a kill; default: `folder`.

    Raises:
        OSError: a file cannot be read, or the manifest not be written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST]
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = list(threads.map(lambda name: _sync_and_hash(folder / name), names))
    size = sum((folder / name).stat().st_size for name in names)
    _write(folder, dict(zip(names, hashes, strict=True)), f"# ringrl: {len(names)} files, {size} bytes\n", staging)


def replace_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace files directly in a folder as one fact, the last of them last; the manifest keeps its other lines.

    A process that is killed leaves the old files or, for every reader of `verified_bytes`, the new ones.

    Args:
        folder: is made if it is missing.
        files: their content by name.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / _LOCK, wait=True):
        _replace_together(folder, files)


def _replace_together(folder: Path, files: Mapping[str, bytes]) -> None:
    _finish(folder)
    sums = _read(folder) if (folder / MANIFEST).exists() else {}
    hashes = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    try:
        for name, body in files.items():
            write_bytes(_staged(folder, name, hashes[name]), body)
        _write(folder, sums | hashes)
    except OSError as error:
        _finish(folder)  # so that a full disk gets back what was written of it
        error.filename = str(folder)  # not that of a staged file, which no user knows
        raise
    for name, expected in hashes.items():
        os.replace(_staged(folder, name, expected), folder / name)
    sync(folder)


def require_replaceable(folder: Path, names: Iterable[str], *, own: bool = True) -> None:
    """See, before work that takes long, whether `replace_together` can replace files of a folder, and may.

    Args:
        folder: need not exist.
        names: of the files.
        own: whether all that has such a name was made by ringrl; else those may not be replaced that no manifest names.

    Raises:
        UserError: the manifest is damaged, or a file is a folder or somebody else's.
    """
    for name in (*names, MANIFEST):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: is a folder, and a file is to be written there; choose another place")
    sums = _read(folder) if (folder / MANIFEST).exists() else {}
    foreign = [name for name in names if not own and name not in sums and os.path.lexists(folder / name)]
    if foreign:
        raise UserError(f"{folder / foreign[0]}: was not made by this step, and is not replaced; choose another place")


def is_there(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        DamagedError: it is not, though its folder's manifest names it.
    """
    if os.path.exists(path):  # False also of a name that no file system takes
        return True
    expected = _read(path.parent).get(path.name) if os.path.isfile(path.parent / MANIFEST) else None
    if expected is not None and not _staged(path.parent, path.name, expected).exists():
        raise _again(path.parent, f"{path.name} is missing, which {MANIFEST} names: {_CUT}")
    return False


def finish(folder: Path) -> None:
    """Rename what a killed `replace_together` left to be renamed, and remove what it never came to use."""
    if any(folder.glob(f"{_STAGED}*")):
        with exclusive(folder / _LOCK, wait=True):
            _finish(folder)


def _finish(folder: Path) -> None:
    sums = _read(folder) if (folder / MANIFEST).exists() else {}
    wanted = {_staged(folder, name, expected): name for name, expected in sums.items() if "/" not in name}
    for staged in folder.glob(f"{_STAGED}*"):
        if staged in wanted:
            os.replace(staged, folder / wanted[staged])
        else:
            staged.unlink(missing_ok=True)


def verified_bytes(path: Path) -> bytes:
    """The content of a file; it is checked where its folder's manifest names it.

    Raises:
        DamagedError: it is not what was written, or the manifest is damaged.
        OSError: it cannot be read.
    """
    for _ in range(3):  # it may be replaced while it is read, and then agrees with the next manifest
        sums = _read(path.parent) if (path.parent / MANIFEST).is_file() else {}
        expected = sums.get(path.name)
        if expected is None:
            return path.read_bytes()
        for candidate in (path, _staged(path.parent, path.name, expected)):
            with suppress(FileNotFoundError):
                body = candidate.read_bytes()
                if hashlib.sha256(body).hexdigest() == expected:
                    return body
    path.read_bytes()  # if it is missing, that is the error
    raise _changed(path.parent, path.name)


def check(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> bool:
    """Compare a folder with its manifest.

    Args:
        folder: what to check.
        wanted: of the files that it names, which ones; default all.

    Returns:
        Whether there is a manifest; without one nothing is known.

    Raises:
        DamagedError: files are missing or are not what was written, or the manifest is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return False
    sums = _read(folder)
    _note_missing_lines(folder, len(sums))
    names = [name for name in sums if wanted(name)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise _again(folder, _missing(missing, len(names)))
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = threads.map(lambda name: _hash(folder / name), names)
        for name, found in zip(names, hashes, strict=True):
            if found != sums[name]:
                raise _changed(folder, name, find_cut(folder))
    return True


def find_cut(folder: Path) -> str | None:
    """What is missing in a folder, of files or of bytes; None if nothing is, or nothing is known."""
    if not (folder / MANIFEST).is_file():
        return None
    sums = _read(folder)
    missing = [name for name in sums if not (folder / name).is_file()]
    if missing:
        return _missing(missing, len(sums))
    head = _TOTAL.match((folder / MANIFEST).read_text(encoding="utf-8"))
    size = sum((folder / name).stat().st_size for name in sums)
    return None if head is None or size >= int(head[2]) else f"the folder has {size} of {head[2]} bytes: {_CUT}"


def _note_missing_lines(folder: Path, lines: int) -> None:
    """Say once, in the log, how many files of a sealed folder have no line any more."""
    head = _TOTAL.match((folder / MANIFEST).read_text(encoding="utf-8"))
    if head is not None and lines < int(head[1]) and str(folder) not in _noted:
        _noted.add(str(folder))
        _log.warning("%s: its %s names %d of %s files; the others are not verified", folder, MANIFEST, lines, head[1])


def note_unverified(folder: Path | str) -> None:
    """Say once, in the log, that a folder of an earlier ringrl cannot be verified."""
    if str(folder) not in _noted:
        _noted.add(str(folder))
        _log.warning("%s: written by an earlier ringrl, without %s: it cannot be verified", folder, MANIFEST)


def require(folder: Path, promised: bool) -> None:
    """Raise DamagedError where a manifest is missing that was `promised`; else note that a folder has none."""
    if (folder / MANIFEST).is_file():
        return
    if promised:
        raise _again(folder, f"its {MANIFEST} is missing: {_CUT}")
    note_unverified(folder)


def _read(folder: Path) -> dict[str, str]:
    """The hashes by name."""
    return parse((folder / MANIFEST).read_bytes(), folder / MANIFEST)


def parse(content: bytes, path: Path | str) -> dict[str, str]:
    """The hashes by name that a manifest contains; `path` is where it is. Raises DamagedError where it is malformed."""
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise _malformed(path, 1) from None
    if not content:
        raise DamagedError(f"{path}: is empty; restore the file, or copy the folder again")
    if lines.pop():
        raise _malformed(path, len(lines) + 1)
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match and _is_inside(match[2]):
            found[match[2]] = match[1]
        elif not _TOTAL.fullmatch(line):  # a damaged comment may have swallowed a line
            raise _malformed(path, number)
    return found


def _is_inside(name: str) -> bool:
    """Whether it can be a file of the folder."""
    parts = name.split("/")
    return "\0" not in name and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)


def _write(folder: Path, sums: Mapping[str, str], head: str = "", staging: Path | None = None) -> None:
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    write_bytes(folder / MANIFEST, f"{head}{lines}".encode(), staging=staging)


def _staged(folder: Path, name: str, expected: str) -> Path:
    return folder / f"{_STAGED}{expected[:16]}-{name}"


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(names: Sequence[str], of: int) -> str:
    return f"{len(names)} of {of} files are missing, the first is {names[0]}: {_CUT}"


def _again(folder: Path, cut: str) -> DamagedError:
    return DamagedError(f"{folder}: {cut} copy it again")


def _changed(folder: Path, name: str, cut: str | None = None) -> DamagedError:
    if cut is not None:
        return DamagedError(f"{folder / name}: has changed since it was written, and {cut} copy it again")
    return DamagedError(
        f"{folder / name}: has changed since it was written; restore it or, if you changed it yourself, delete its "
        f"line in {folder / MANIFEST}"
    )


def _malformed(path: Path | str, line: int) -> DamagedError:
    return DamagedError(f"{path} line {line}: damaged; restore the file, or delete the line")
