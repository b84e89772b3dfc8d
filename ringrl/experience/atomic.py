"""Folders that exist whole or not at all."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringrl.errors import UserError


@contextmanager
def atomic_folder(out: Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder `OUT.partial-HOST-PID` beside `out`; at the end rename it, on any exception remove it.

    A killed process leaves its partial folder; the next call for the same `out` on that host removes those of processes
    now gone. Of two at once for the same `out` the second to end is refused, unless it may overwrite.

    Args:
        out: the folder to be.
        marker: a file that every folder of this kind contains. Only such a folder is ever replaced.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: if `out` cannot be made; if it exists, at the beginning or at the end, and `overwrite` is not set or
            it has no `marker`.
    """
    _check(out, marker, overwrite)
    partial = out.with_name(f"{_prefix(out)}{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
    try:
        yield partial
        _check(out, marker, overwrite)
        if out.exists():
            # A folder cannot be renamed onto another; the old one steps aside, as a partial one in case we are killed.
            old = out.with_name(f"{partial.name}-old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check(out: Path, marker: str, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already; choose another name or pass --overwrite")
    if out.exists() and not (out / marker).is_file():
        raise UserError(f"{out} has no {marker}, so it was not made by this step and is not overwritten")


def _prefix(out: Path) -> str:
    """Of this host's partial folders: nothing is known of another's processes, on a shared file system."""
    return f"{out.name}.partial-{platform.node()}-"


def _remove_stale(out: Path) -> None:
    for partial in out.parent.glob(f"{out.name}.partial-*"):
        owner = partial.name.removeprefix(_prefix(out)).removesuffix("-old")
        if owner.isdigit() and not _is_running(int(owner)):
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
