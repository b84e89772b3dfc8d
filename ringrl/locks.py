"""A lock between processes: one at a time writes into a folder."""

import errno
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ringrl.errors import UserError, unwritable

_log = logging.getLogger(__name__)

_TRIES = 1000  # a lock's last owner may take the folder away as often as others wait for it
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# The open files whose locks this process has: each one's path, and the folders that were made for it.
_taken: dict[int, list[Path]] = {}


@contextmanager
def exclusive(lock: Path, *, of: Path | None = None, wait: bool = False) -> Iterator[None]:
    """Keep other processes and threads out of the same `with exclusive(lock)`; a killed process frees the lock.

    The lock is the kernel's (flock) on a file that exists only meanwhile and names the process that has it. A process
    forked inside does not have the lock. Folders that are missing are made, and removed at the end if they are empty.
    Between machines the lock is as good as the shared file system; where this knows no locks at all, a warning says so
    in the log, and nobody is kept out.

    Args:
        lock: the file.
        of: what an error says is in use; default `lock`.
        wait: wait until the lock is free.

    Raises:
        UserError: if another process has the lock and `wait` is not set, or `lock` cannot be written.
    """
    missing = [folder for folder in lock.parents if not folder.exists()]
    for _ in range(_TRIES):
        file = _try_lock(lock, of or lock, wait)
        if file is not None:
            break
    else:  # such as in a working folder that is not there any more
        raise unwritable(of or lock, FileNotFoundError(errno.ENOENT, "its folder cannot be made"))
    _taken[file] = [lock, *missing]
    try:
        yield
    finally:
        _release(file)


def release_all() -> None:
    """Free all locks of this process, which is about to end at once (`os._exit`), and remove their files."""
    for file in list(_taken):
        with suppress(OSError, KeyError):  # the main thread may be just releasing it
            _release(file)


def _release(file: int) -> None:
    lock, *made = _taken.pop(file)
    lock.unlink(missing_ok=True)
    os.close(file)
    with suppress(OSError):  # one is not empty, so that those above it are not either
        for folder in made:
            folder.rmdir()


def _try_lock(lock: Path, of: Path, wait: bool) -> int | None:
    """The open file, locked; None if its last owner removed it between the two calls, so that it protects nothing."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:  # the last owner removed the folder too
        if lock.parent.is_symlink():
            raise UserError(f"{lock.parent}: is a link to nothing; remove it, or choose another place") from None
        return None
    except OSError as error:
        raise unwritable(of, error) from error
    _taken[file] = [lock]
    try:
        if _flock(file, lock, wait) and os.path.samestat(os.fstat(file), lock.stat()):
            _write_owner(file)
            return file
    except FileNotFoundError:
        pass
    except BlockingIOError:
        owner = _read_owner(lock)
        _close(file)
        raise UserError(f"{of}: in use by {owner}; wait for it to end, or end it") from None
    except BaseException:
        _close(file)
        raise
    _close(file)
    return None


def _flock(file: int, lock: Path, wait: bool) -> bool:
    """True; raises BlockingIOError if another has the lock."""
    import fcntl  # not on Windows, where nothing that needs a lock runs

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _log.warning("%s: no locks on this file system (%s); keep other processes out", lock.parent, error.strerror)
    return True


def _close(file: int) -> None:
    _taken.pop(file)
    os.close(file)


def _write_owner(file: int) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = {"process": os.getpid(), "host": platform.node(), "since": since}
    with suppress(OSError):  # a full disk; the lock holds all the same
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(owner).encode(), 0)


def _read_owner(lock: Path) -> str:
    try:
        owner = json.loads(lock.read_bytes())
        return f"process {int(owner['process'])} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"


def _forget_in_child() -> None:
    """A child's copies of the open files would keep the locks when this process has died."""
    for file in _taken:
        with suppress(OSError):
            os.close(file)
    _taken.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_in_child)
