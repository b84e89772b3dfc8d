"""The part `fuzzed` of `benchmarks.faults`: every reader is given files that are not what they should be.

What is read well, or refused by one UserError, is as it should be. Any other exception is untyped; what takes longer
than `PATIENCE` hangs, and so does what ends the process. Each reader is tried in a process of its own, which keeps a
diary of what it is about to read, and is started again after that if it dies of it.
"""

import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks._faults_mutations import mutate
from benchmarks._faults_readers import READERS, Reader
from ringrl.errors import UserError

PATIENCE = 20.0
"""Seconds for one file."""


class Hang(BaseException):
    """A reader took longer than `PATIENCE`."""


@dataclass
class Outcome:
    """What came of the mutations of one reader."""

    fuzzed: int = 0
    refused: int = 0
    untyped: int = 0
    hangs: int = 0
    examples: dict[str, str] = field(default_factory=dict)  # by kind of failure, the first: number, file, message


def fuzz(reader: Reader, count: int, seed: int, folder: Path, diary: Path | None = None) -> Outcome:
    """Mutate one file after the other, and read the folder each time.

    Args:
        reader: what is tried.
        count: mutations.
        seed: of the draws: mutation i of a seed is always the same.
        folder: an empty one.
        diary: a file that says, before each mutation is read, what has come of those so far. If it exists, its
            mutations are done: the last of them ended its process.
    """
    reader.make(folder)
    files = sorted({path for pattern in reader.files for path in folder.glob(pattern) if path.is_file()})
    good = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    reader.read(folder)  # which is well
    found = Outcome()
    if diary is not None and diary.exists():
        found = Outcome(**json.loads(diary.read_text()))
        found.hangs += 1
        found.examples.setdefault("the process died", str(found.fuzzed - 1))
    for index in range(found.fuzzed, count):
        draw = random.Random(f"{reader.name} {seed} {index}")
        path = draw.choice(files)
        path.write_bytes(mutate(good[path], draw))
        found.fuzzed += 1
        if diary is not None:
            diary.write_text(json.dumps(asdict(found)))
        _try(reader, folder, found, f"{index}, {path.name}")
        for each, content in good.items():
            if each == path or not each.is_file() or each.stat().st_size != len(content):
                each.write_bytes(content)
    return found


def _try(reader: Reader, folder: Path, found: Outcome, what: str) -> None:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
    except UserError:
        found.refused += 1
    except Hang:
        found.hangs += 1
        found.examples.setdefault("hang", what)
    except Exception as error:
        found.untyped += 1
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        found.examples.setdefault(kind, f"{what}: {' '.join(str(error).split())[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz_in_process(reader: Reader, count: int, seed: int) -> Outcome:
    """As `fuzz`, in a process of its own, in a folder in memory where there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        diary, command = Path(place) / "diary", [sys.executable, "-m", "benchmarks._faults_fuzzed"]
        environment = os.environ | {"TMPDIR": place, "JAX_PLATFORMS": "cpu", "MUJOCO_GL": "disabled"}
        while True:
            before = diary.stat().st_mtime_ns if diary.exists() else 0
            done = subprocess.run([*command, reader.name, str(count), str(seed), place], env=environment, check=False)
            if done.returncode == 0:
                return Outcome(**json.loads(diary.read_text()))
            if not diary.exists() or diary.stat().st_mtime_ns == before:
                raise RuntimeError(f"{reader.name}: its process ended with {done.returncode} before it read anything")


def run_fuzzed(mutations: int, seed: int) -> dict[str, int]:
    """Try all readers; prints a table. Returns how many mutations, untyped exceptions and hangs there were."""
    print(f"{'reader':10}{'mutations':>12}{'refused':>10}{'untyped':>10}{'hangs':>8}")
    total, whole = Outcome(), sum(reader.share for reader in READERS)
    for reader in READERS:
        found = fuzz_in_process(reader, math.ceil(mutations * reader.share / whole), seed)
        print(f"{reader.name:10}{found.fuzzed:12,}{found.refused:10,}{found.untyped:10}{found.hangs:8}", flush=True)
        for kind, example in found.examples.items():
            print(f"    {kind}: {example}".encode(errors="replace").decode())
        total.fuzzed, total.untyped = total.fuzzed + found.fuzzed, total.untyped + found.untyped
        total.hangs += found.hangs
    return {"fuzzed": total.fuzzed, "untyped": total.untyped, "hangs": total.hangs}


def _work(name: str, count: str, seed: str, place: str) -> None:
    """The process of one reader; its last words are in the diary."""
    logging.disable(logging.CRITICAL)
    folder, diary = Path(place) / "files", Path(place) / "diary"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (reader,) = (each for each in READERS if each.name == name)
    diary.write_text(json.dumps(asdict(fuzz(reader, int(count), int(seed), folder, diary))))


if __name__ == "__main__":
    _work(*sys.argv[1:])
