"""Folders that exist whole or not at all."""

import glob
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringrl.errors import UserError

_OLD = "-old"  # ends the name of a folder that is being replaced


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
    partial = out.with_name(f"{_prefix(out)}{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        _check(out, marker, overwrite)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
    try:
        yield partial
        _check(out, marker, overwrite)
        _replace(out, partial)
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


def _replace(out: Path, partial: Path) -> None:
    """Rename `partial` to `out`. A folder cannot be renamed onto another, so what is there steps aside before."""
    old = partial.with_name(f"{partial.name}{_OLD}")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
