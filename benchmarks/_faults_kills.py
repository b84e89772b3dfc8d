"""The part `kills` of `benchmarks.faults`: a step is killed, and given again.

Every step runs in a forked process that has imported all it needs, so that a kill costs about what the step itself
does. Half of the kills come before or after a drawn change of the file system (a rename, a removal, a file made
durable): between two files that belong together, inside a checkpoint. The others come at a drawn moment.

    lost        what was complete before the kill is missing or damaged, or the step given again fails
    differing   what comes out in the end is not, to the bit, what an undisturbed step makes
    torn        right after the kill, files that belong together are of two different times
    leftovers   temporary files, folders or locks that are still there when the step has been given again
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks._faults_data_steps import DATA_STEPS
from benchmarks._faults_steps import STEPS, Step

_LEFT = (
    ".partial-*",
    "*.partial-*",
    ".staged-*",
    ".*.lock",
    ".lock",
    "*.orbax-checkpoint-tmp*",
    "*-old",
    "*.relabel-*",
)
_CALLS = ("replace", "rename", "unlink", "rmdir", "fsync", "mkdir")


def run_kills(count: int, seed: int, only: str | None = None) -> dict[str, int]:
    """Kill `count` steps, print what came of them, and return the figures."""
    steps = steps_named(only)
    draw, shares = random.Random(seed), sum(step.share for step in steps)
    kinds = f"{'recovered':>10} {'lost':>6} {'differing':>10} {'torn':>6} {'leftovers':>10}"
    print(f"\n{'kills':<12} {'kills':>7} {kinds} {'seconds':>9}")
    total: Counter = Counter()
    for step in steps:
        number = max(1, round(count * step.share / shares))
        began = time.perf_counter()
        found = _kill_often(step, number, draw)
        columns = [found[kind] for kind in ("recovered", "lost", "differing", "torn", "leftovers")]
        widths = (10, 6, 10, 6, 10)
        row = " ".join(f"{value:>{width}}" for value, width in zip(columns, widths, strict=True))
        print(f"{step.name:<12} {found['kills']:>7} {row} {time.perf_counter() - began:>9.0f}", flush=True)
        total += found
    return {name: total[name] for name in ("kills", "lost", "differing", "torn", "leftovers")}


def steps_named(only: str | None) -> list[Step]:
    """The step of that name, or all. SystemExit: there is none."""
    known = (*STEPS, *DATA_STEPS)
    steps = [step for step in known if only in (None, step.name)]
    if not steps:
        raise SystemExit(f"--only {only}: there are {', '.join(step.name for step in known)}")
    return steps


@dataclass(frozen=True)
class Undisturbed:
    """A step that was not killed: what came out, and where it can be killed."""

    result: str
    changes: int
    seconds: float


def _kill_often(step: Step, count: int, draw: random.Random) -> Counter:
    found: Counter = Counter()
    with prepared(step) as (start, whole):
        while found["kills"] < count:
            folder = start.parent / "tried"
            shutil.copytree(start, folder, symlinks=True)
            found += _kill_once(step, folder, whole, draw)
            shutil.rmtree(folder)
    return found


@contextmanager
def prepared(step: Step) -> Iterator[tuple[Path, Undisturbed]]:
    """What a step begins with, in a folder `start` of a new one, and what it makes of that when nothing disturbs it."""
    with tempfile.TemporaryDirectory(prefix="ringrl-faults-") as place:
        start = Path(place) / "start"
        start.mkdir()
        _compile_quickly(Path(place) / "compiled")
        in_child(lambda: step.prepare(start), Path(place))
        yield start, _undisturbed(step, start, Path(place))
        _compile_quickly(None)


def _compile_quickly(cache: Path | None) -> None:
    """Programs are kept, and optimised little: most of the time of such small steps goes into compiling. None: undo."""
    jax.config.update("jax_compilation_cache_dir", None if cache is None else str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_disable_most_optimizations", cache is not None)


def _undisturbed(step: Step, start: Path, place: Path) -> Undisturbed:
    folder = place / "whole"
    shutil.copytree(start, folder)
    in_child(lambda: step.work(folder), place)  # with what it compiles once
    shutil.rmtree(folder)
    shutil.copytree(start, folder)
    counted, began = place / "changes", time.perf_counter()

    def work() -> None:
        calls = _count_changes(None, 0)
        step.work(folder)
        counted.write_text(str(calls[0]))

    in_child(work, place)
    seconds = time.perf_counter() - began
    whole = Undisturbed(_result(step, folder), int(counted.read_text()), seconds)
    shutil.rmtree(folder)
    return whole


def _kill_once(step: Step, folder: Path, whole: Undisturbed, draw: random.Random) -> Counter:
    """Kill it, look, give it again, and compare; a step that ended before its kill is not counted."""
    before = step.fact(folder)
    at_change = draw.random() < 0.5
    at, after = draw.randrange(max(1, whole.changes)), draw.randrange(2)
    moment = None if at_change else draw.uniform(0.05, 1.0) * whole.seconds

    def work() -> None:
        if at_change:
            _count_changes(at, after)
        step.work(folder)

    killed = fork(work, folder.parent / "log", moment)
    if killed is None:
        raise SystemExit(f"{step.name} failed before it was killed: {(folder.parent / 'log').read_text()[-2000:]}")
    if not killed:
        return Counter()
    where = f"change {at} {'after' if after else 'before'}" if at_change else f"{moment:.2f} s"
    return Counter(kills=1) + give_again(step, folder, whole, before, f"killed at {where}")


def give_again(step: Step, folder: Path, whole: Undisturbed, before: Any, what: str) -> Counter:
    """After `what` happened to a step: look, give it again, and compare. `before` is its fact at the beginning."""
    kept, fact, log = step.complete(folder), step.fact(folder), folder.parent / "log"
    again = fork(lambda: step.again(folder), log, None)
    lost = again is not False or not kept <= step.complete(folder)
    differing = not lost and _result(step, folder) != whole.result
    left = left_in(folder)
    torn = fact not in (before, step.fact(folder))
    wrong = {"lost": lost, "differing": differing, "torn": torn, "leftovers": bool(left)}
    for name in (name for name, is_so in wrong.items() if is_so):
        about = log.read_text()[-400:] if name == "lost" else [str(path) for path in left[:3]]
        print(f"  {step.name}, {what}: {name} {about} {fact if name == 'torn' else ''}")
    return Counter({name: 1 for name, is_so in wrong.items() if is_so} or {"recovered": 1})


def left_in(folder: Path) -> list[Path]:
    """Temporary files, folders and locks."""
    return [path for pattern in _LEFT for path in folder.rglob(pattern)]


def _result(step: Step, folder: Path) -> str:
    return hashlib.sha256(json.dumps(step.result(folder), sort_keys=True).encode()).hexdigest()


def in_child(work: Callable[[], Any], place: Path) -> None:
    """Do what must not fail in a process of its own, which may start threads."""
    if fork(work, place / "log", None) is not False:
        raise SystemExit(f"an undisturbed step failed: {(place / 'log').read_text()[-2000:]}")


def fork(work: Callable[[], Any], log: Path, moment: float | None) -> bool | None:
    """Run `work` in a child; True if it was killed (at `moment`, or by itself), False if it ended well, else None."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become(work, log)
    if moment is not None:
        deadline = time.perf_counter() + moment
        while time.perf_counter() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.005)
        else:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    return False if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else None


def _become(work: Callable[[], Any], log: Path) -> None:
    """In the child: do it, write what it prints to `log`, and end without what the parent would do at its end."""
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work()
        status = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


def _count_changes(kill_at: int | None, after: int) -> list[int]:
    """Count changes of the file system from now on, and end this process before or after one of them."""
    calls = [0]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            mine, calls[0] = calls[0], calls[0] + 1
            if mine == kill_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = real(*arguments, **options)
            if mine == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    for name in _CALLS:
        setattr(os, name, counting(getattr(os, name)))
    return calls
