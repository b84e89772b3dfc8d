"""Whose code is run: a run or an export brings its agent's source along, and so it may be a stranger's program.

Three kinds of source are run without a question: a shipped recipe's; what this user has trained with; what this user
has accepted. The last two are remembered, across runs, in a file that only this user may write (`record_file`).
Nothing in a run says that it may be trusted: a path in it, or the owner of its files, could be anyone's after an
archive was unpacked.

A run's task may name a module (`my_module:Rig-v0`), and so may its trackers (`my_module:MyTracker`), which Python may
find in the working folder. Such a module is remembered by its path, for it changes while a run is trained; an installed
one is trusted as all that is installed. Trackers are imported by training alone: going on with a run asks about them.
"""

import importlib.machinery
import importlib.util
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ringrl import recipes
from ringrl.agent_record import sha256
from ringrl.errors import UserError

_log = logging.getLogger(__name__)
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LINE = re.compile(rb"^([0-9a-f]{64})  ", re.MULTILINE)

_given: ContextVar[bool] = ContextVar("trust", default=False)
_accepted: set[str] = set()  # by this process, also where there is no file to remember it


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """While it is entered, and if `trust`, agents of runs and exports are run whoever wrote them."""
    before = _given.set(trust or _given.get())
    try:
        yield
    finally:
        _given.reset(before)


def record_file() -> Path:
    """Where is remembered what this user has trained with or accepted. KeyError: the user has no home."""
    import pwd  # not on Windows

    settings, home = (os.environ.get(name, "") for name in ("XDG_CONFIG_HOME", "HOME"))
    if os.path.isabs(settings):
        return Path(settings) / "ringrl" / "trusted"
    base = Path(home if os.path.isabs(home) else pwd.getpwuid(os.geteuid()).pw_dir)
    return base / ".config" / "ringrl" / "trusted"


def require_trusted_config(values: Mapping[str, Any]) -> None:
    """Check that the programs which a run's or an export's configuration names may be run.

    Args:
        values: the configuration, unchecked. Its agent's file, and the module of its task.

    Raises:
        UserError: as `require_trusted`; or there is no such agent.
    """
    agent, data = values.get("agent"), values.get("data")
    if isinstance(agent, dict) and isinstance(name := agent.get("name"), str):
        require_trusted(recipes.find("agents", name))
    if isinstance(data, dict) and isinstance(task := data.get("task"), str):
        require_trusted_modules([task])


def require_trusted_modules(names: Iterable[str]) -> None:
    """Check that the modules which a run's task or trackers name may be imported; ask, where there is a terminal.

    Args:
        names: as `my_module:Rig-v0`; those without a module need no trust.

    Raises:
        UserError: as `require_trusted`, of a module of the working folder.
    """
    for name in names:
        if module := _local_module(name):
            _require(_mark_of(module), module, f"{name} of a run would import it")


def require_trusted(source: Path) -> None:
    """Check that an agent's file that a run or an export brings along may be run; ask, where there is a terminal.

    Args:
        source: the file.

    Raises:
        UserError: it is no shipped recipe's source, this user has neither trained with it nor accepts it, and no
            `trusting(True)` is entered.
    """
    body = source.read_bytes()
    if not recipes.is_shipped("agents", body):
        _require(sha256(body), source, f"SHA-256 {sha256(body)}")


def remember_trained(source: bytes, file: Path, task: str) -> None:
    """From now on, run what this user trains with, without a question.

    Where it cannot be written down, this process alone knows it, and unless the agent is a shipped one, the log says
    so.

    Args:
        source: the agent's.
        file: where it is.
        task: the run's, which may name a module.
    """
    _remember(sha256(source), file, said=not recipes.is_shipped("agents", source))
    remember_modules([task])


def remember_modules(names: Iterable[str]) -> None:
    """From now on, import the modules of the working folder that this user has named, without a question.

    Args:
        names: as `my_module:Rig-v0`.
    """
    for name in names:
        if module := _local_module(name):
            _remember(_mark_of(module), module)


def _require(mark: str, what: Path, more: str) -> None:
    if _given.get() or mark in _accepted or mark in _remembered():
        return
    about = f"{what}: is a program that you have neither trained with nor accepted before ({more})"
    if not _ask(str(UserError(about))):
        raise UserError(f"{about}; read it, and pass --trust (in Python trust=True) to run it")
    _remember(mark, what)


def _local_module(name: str) -> Path | None:
    """The file of the module in `module:name`, where importing it would find it in the working folder alone."""
    top = name.rpartition(":")[0].partition(".")[0]
    if not top or top in sys.modules:
        return None
    here = os.getcwd()
    with suppress(ImportError, ValueError):
        elsewhere = importlib.util.find_spec(top)
        if elsewhere is not None and not (elsewhere.origin or "").startswith(os.path.join(here, "")):
            return None
    local = importlib.machinery.PathFinder.find_spec(top, [here])
    return None if local is None else Path(local.origin or os.path.join(here, top))


def _mark_of(module: Path) -> str:
    return sha256(f"module {module}".encode(errors="surrogateescape"))


def _remember(mark: str, what: Path, *, said: bool = True) -> None:
    if mark in _accepted or mark in _remembered():
        return
    _accepted.add(mark)
    try:
        path = record_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with open(file, "ab", buffering=0) as record:
            name = re.sub(r"\s", " ", os.fspath(what.absolute()))  # for people
            record.write(f"{mark}  {name}\n".encode(errors="replace"))  # one call, so that no two lines mix
    except (OSError, KeyError) as error:
        if said:
            _log.warning("%s: cannot be remembered as trusted (%s); later steps will ask", what, error)


def _remembered() -> set[str]:
    """The marks in the record; none where another user could have written it."""
    try:
        with open(os.open(record_file(), os.O_RDONLY | os.O_NOFOLLOW), "rb") as record:
            about = os.fstat(record.fileno())
            if about.st_uid == os.geteuid() and not about.st_mode & _OTHERS_MAY_WRITE:
                return {digest.decode() for digest in _LINE.findall(record.read())}
            _log.warning("%s: is of another user, or others may write it; it is not used: remove it", record_file())
    except (OSError, KeyError):
        pass
    return set()


def _ask(what: str) -> bool:
    """Whether the person at the terminal says yes. False where there is no terminal."""
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return False
    print(f"ringrl: {what}. Run it, now and later? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
