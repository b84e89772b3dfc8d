"""Files and folders that are complete or absent.

Everything is written under a temporary name on the same file system and renamed at the end, so that a reader, or the
next run after a crash, sees the old content or the new, never a part. On an exception the temporary file or folder is
removed. A killed process leaves it behind, and no reader of ringrl takes it for data: the next process that writes
there removes it (`atomic_folder`, `alone_in`).
"""

import errno
import glob
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ringrl.errors import UserError, unwritable
from ringrl.locks import exclusive, release_all

_OLD = "-old"  # ends the name of a folder that is being replaced
_PROCESS = uuid.uuid4().hex[:8]  # tells this process from an earlier one with its number
_DAY = 86400.0
# What this process is writing: temporary files, and temporary folders with the folder that each is to become.
_files: set[Path] = set()
_folders: dict[Path, Path] = {}


@contextmanager
def atomic_file(path: Path, *, staging: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, with the suffix of `path`; at the end rename it to `path`.

    Two writers of one `path`, in threads, processes or machines, do not meet: the last to end wins.

    Args:
        path: the file to be; replaced if it exists. Its folder must exist.
        staging: the folder of the temporary file, on the same file system; default: that of `path`.
        durable: wait until it is on the disk. Else a machine that loses power may keep the new name without the
            content: for one of many files, which are waited for together (`ringrl.manifest.seal`).

    Raises:
        OSError: if the file cannot be written or renamed.
    """
    made_by = f"{_file_prefix()}{os.getpid()}-{_PROCESS}{uuid.uuid4().hex[:6]}"
    temporary = (staging or path.parent) / f"{made_by}-{path.name}"
    _files.add(temporary)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.errno is None:  # NumPy's, of a write that was cut short
            raise unwritable(path, error) from error
        _name_for_users(error, temporary, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        _files.discard(temporary)


def _name_for_users(error: OSError, temporary: Path, path: Path) -> None:
    """Let an error of a write, which has no name, or of a temporary name, which no user knows, be one of `path`."""
    named = (error.filename, error.filename2)
    if named == (None, None) or any(str(temporary) in str(name) for name in named):
        error.filename, error.filename2 = str(path), None


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on the disk, where its file system can say so.

    Raises:
        OSError: the content cannot be written there.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(file)


def write_text(path: Path, text: str, *, staging: Path | None = None) -> None:
    """Write `text` in UTF-8 to `path`, as `atomic_file` does."""
    write_bytes(path, text.encode(), staging=staging)


def write_bytes(path: Path, body: bytes, *, staging: Path | None = None) -> None:
    """Write `body` to `path`, as `atomic_file` does."""
    with atomic_file(path, staging=staging) as temporary:
        temporary.write_bytes(body)


@contextmanager
def atomic_folder(out: Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder `OUT.partial-HOST-PID` beside `out`; at the end rename it to `out`.

    The next call for the same `out` on a host removes the folders that its killed processes left. Of two calls at once
    for the same `out` the second is refused (`ringrl.locks.exclusive`).

    Args:
        out: the folder to be; the folders above it are made.
        marker: a file that every folder of this kind contains. Only such a folder is ever replaced.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: if `out` cannot be made; if another process is making it; if it exists, at the beginning or at the
            end, and `overwrite` is not set or it has no `marker`.
    """
    with exclusive(out.with_name(f".{out.name}.lock"), of=out):
        yield from _make_folder(out, marker, overwrite)


def _make_folder(out: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """`atomic_folder`, by the process that has the lock."""
    partial = out.with_name(f"{_prefix(out)}{os.getpid()}")
    _folders[partial] = out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        check_replaceable(out, marker, overwrite)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
    try:
        yield partial
        check_replaceable(out, marker, overwrite)
        old = partial.with_name(f"{partial.name}{_OLD}")
        replace_folder(out, partial, aside=old)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            _name_for_users(error, partial, out)
        raise
    finally:
        _folders.pop(partial, None)


def clean_up() -> None:
    """Remove the temporary files and folders of this process, which is about to end at once, and free its locks."""
    for temporary in list(_files):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    for partial, out in list(_folders.items()):
        old = partial.with_name(f"{partial.name}{_OLD}")
        with suppress(OSError):
            if old.exists() and not out.exists():  # between two renames
                old.rename(out)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    release_all()


def check_replaceable(out: Path, marker: str, overwrite: bool) -> None:
    """Check that `out` is absent, or is a folder with the file `marker` and may be replaced.

    Raises:
        UserError: if not.
    """
    there = os.path.exists(out)  # False where this process may not look; then making it says what is wrong
    if there and not overwrite:
        raise UserError(f"{out} exists already; choose another name or pass --overwrite")
    if there and not (out / marker).is_file():
        raise UserError(f"{out} has no {marker}, so it was not made by this step and is not overwritten")


def check_room(folder: Path) -> None:
    """See, before work that takes long, whether files can be written into `folder`; it is made if it is missing.

    Raises:
        UserError: they cannot; the folder can only be read, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise unwritable(folder, error) from error


def check_folder(out: Path, *, marker: str, overwrite: bool = False) -> None:
    """See, before work that takes long, whether `atomic_folder` can make `out`. Raises UserError as that does."""
    with exclusive(out.with_name(f".{out.name}.lock"), of=out):
        check_replaceable(out, marker, overwrite)
        check_room(out.parent)


def replace_folder(out: Path, new: Path, *, aside: Path) -> None:
    """Rename `new` to `out`. A folder cannot be renamed onto another: what is at `out` is renamed to `aside` before.

    If `new` cannot be renamed, what was at `out` is put back, unless another process has made `out` meanwhile.

    Args:
        out: the folder to be; it may exist.
        new: its new content, on the same file system.
        aside: the place for its old content, which the caller removes; absent before.

    Raises:
        OSError: if one of the two cannot be renamed.
    """
    if out.exists():
        out.rename(aside)
    try:
        new.rename(out)
    except BaseException:
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise


@contextmanager
def alone_in(folder: Path, lock: str = ".lock", *, of: Path | None = None, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of `folder` (`ringrl.locks.exclusive`), and remove the files that killed ones left.

    Args:
        folder: made if it is missing, and removed at the end if it is empty.
        lock: the lock's name in it; different ones do not exclude each other.
        of: what an error says is in use; default `folder`.
        wait: wait until the lock is free.

    Raises:
        UserError: if another process has the lock and `wait` is not set, or the folder cannot be written.
    """
    with exclusive(folder / lock, of=of or folder, wait=wait):
        _sweep(folder)
        yield


def _sweep(folder: Path) -> None:
    """Remove temporary files of dead processes of this host, and those untouched for a day: of others nothing is known.

    `.index.html.PID` is a name of an earlier ringrl.
    """
    for path in [*folder.glob(".partial-*"), *folder.glob(".index.html.*")]:
        owner, _, process = path.name.removeprefix(_file_prefix()).partition("-")
        mine = owner == str(os.getpid())
        dead = owner.isdigit() and (not process.startswith(_PROCESS) if mine else not _is_running(int(owner)))
        with suppress(OSError):
            if dead or time.time() - path.stat().st_mtime > _DAY:
                path.unlink()


def _file_prefix() -> str:
    return f".partial-{platform.node()}-"


def _prefix(out: Path) -> str:
    """Of this host's partial folders: nothing is known of another host's processes, on a shared file system."""
    return f"{out.name}.partial-{platform.node()}-"


def _remove_stale(out: Path) -> None:
    """Remove what dead processes of this host left, or put it back: one may have died between two renames."""
    for partial in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
        owner = partial.name.removeprefix(_prefix(out)).removesuffix(_OLD)
        if not owner.isdigit() or _is_running(int(owner)):
            continue
        if partial.name.endswith(_OLD) and not out.exists():
            partial.rename(out)
        else:
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process is only now beginning: the folder is one of an earlier process with its number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with the home folder in place of `~`.

    Raises:
        UserError: it is a URL, of which a path would make a folder named `gs:`.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path)):
        raise UserError(f"{os.fspath(path)}: is a URL, and a file or folder is needed here; only a store may be a URL")
    return Path(os.path.expanduser(path))
