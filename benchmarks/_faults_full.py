"""The part `full` of `benchmarks.faults`: a step runs out of disk, and is given again when there is room.

The disk is a tmpfs of its own, filled but for a drawn part of what the step adds to it. A step that fits after all is
not counted. Beside what the part `kills` counts, for which benchmarks/_faults_kills.py has the words:

    unsaid      it ended in anything but a UserError of one line that says that no space is left
    littered    temporary files, folders or locks were there when it had ended
"""

import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._faults_kills import Undisturbed, fork, give_again, in_child, left_in, prepared, steps_named
from benchmarks._faults_steps import Step
from ringrl.cli.failures import explain
from ringrl.errors import UserError

_DISK = 64 << 20  # bytes
_SAID = re.compile(r"UserError: .*(No space left on device|make room).*")
_GOES_ON = "*.relabel-*"  # what is finished stays there, for the next run, and the line says so
_KINDS = ("recovered", "lost", "differing", "torn", "leftovers", "unsaid", "littered")


def run_full(tries: int, seed: int, only: str | None = None) -> dict[str, int]:
    """Let every step run out of disk, `tries` of all together; print a table, and return the figures."""
    steps = steps_named(only)
    print(f"\n{'full disk':<12} {'tries':>7} {' '.join(f'{kind:>10}' for kind in _KINDS)} {'adds kB':>9}")
    draw, total = random.Random(seed), Counter[str]()
    for step in steps:
        total += _run_out(step, max(1, round(tries / len(steps))), draw)
    return {"full": total["full"]} | {f"full_{kind}": total[kind] for kind in _KINDS[1:]}


def _run_out(step: Step, tries: int, draw: random.Random) -> Counter[str]:
    found = Counter[str]()
    with prepared(step) as (start, whole), _disk(start.parent / "disk") as disk:
        shutil.copytree(start, disk / "tried", symlinks=True)
        began = shutil.disk_usage(disk).used
        in_child(lambda: step.work(disk / "tried"), start.parent)
        adds = shutil.disk_usage(disk).used - began
        for index in range(4 * tries):  # a step that replaces what is there may need less than it adds
            room = (index % tries + draw.random()) / tries * adds
            found += _once(step, start, disk / "tried", round(room), whole)
            if found["full"] >= tries:
                break
    print(f"{step.name:<12} {found['full']:>7} {' '.join(f'{found[kind]:>10}' for kind in _KINDS)} {adds >> 10:>9}")
    return found


def _once(step: Step, start: Path, folder: Path, room: int, whole: Undisturbed) -> Counter[str]:
    """Give the step `room` bytes, then all it needs."""
    shutil.rmtree(folder)
    shutil.copytree(start, folder, symlinks=True)
    before, filler, log = step.fact(folder), folder.parent / "filler", start.parent / "log"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(folder).free - room, 1))
    fitted = fork(lambda: _as_the_command_line(step.work, folder), log, None) is False
    filler.unlink()
    if fitted:
        return Counter()
    said, left = log.read_text(), [path for path in left_in(folder) if not path.match(_GOES_ON)]
    found = Counter(full=1, unsaid=int(not _SAID.fullmatch(said.rpartition("\n")[2])), littered=int(bool(left)))
    if found["unsaid"] or found["littered"]:
        print(f"  {step.name}, room for {room} bytes: {said[-800:]} {left[:3]}")
    return found + give_again(step, folder, whole, before, f"with room for {room} bytes")


def _as_the_command_line(work: Callable[[Path], Any], folder: Path) -> None:
    """Do it; what is no UserError becomes one, as for the command line."""
    try:
        work(folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error)[1]) from error


@contextmanager
def _disk(place: Path) -> Iterator[Path]:
    """A small disk at `place`. SystemExit: none can be mounted here."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(place)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        raise SystemExit(f"{done.stderr.strip()}: run as root, or as `unshare -rm python -m benchmarks.faults`")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
