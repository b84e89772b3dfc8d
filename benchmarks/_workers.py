"""Subjects of a benchmark in processes of their own, which take turns, so that a slow moment meets all of them alike.

The protocol: a worker is `python -m MODULE ARGUMENTS`. It prints one line when it is ready, and then one line in answer
to each line that it reads; it ends when its input ends.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

Subject = TypeVar("Subject")


class Worker:
    """The benchmark's side of one process; a context manager that ends it.

    Args:
        title: of the subject, for the message where it fails.
        module: that is run, such as benchmarks.attention.
        arguments: of its command line.
        environment: variables added to this process's.
        hint: what may be missing where it fails.
    """

    def __init__(
        self, title: str, module: str, arguments: Sequence[str], environment: Mapping[str, str] = {}, hint: str = ""
    ):
        self.title, self.hint = title, hint
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, env=os.environ | environment, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def send(self, line: str) -> None:
        """Ask; other workers may be asked before `receive` waits for the answer."""
        print(line, file=self._process.stdin, flush=True)

    def receive(self) -> str:
        """The next line of the worker. Raises SystemExit where it has ended."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"{self.title} stopped: see its error above{self.hint}")
        return line

    def ask(self, line: str) -> str:
        """The answer to a line."""
        self.send(line)
        return self.receive()


def serve(ready: object, answer: Callable[[str], object]) -> None:
    """The worker's side: print `ready`, then the answer to every line."""
    print(ready, flush=True)
    for line in sys.stdin:
        print(answer(line.strip()), flush=True)


def run_once(module: str, arguments: Sequence[str], cpus: set[int] | None = None) -> Any:
    """The JSON in the last line of a process that takes no turns, bound to `cpus` before it starts a thread."""
    mine = os.sched_getaffinity(0)
    # This thread's, which the process inherits; other threads of this process keep theirs.
    os.sched_setaffinity(0, cpus or mine)
    try:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, mine)
    return json.loads(done.stdout.splitlines()[-1])


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """All names in an order of its own for each round; the same orders every time."""
    order = random.Random(0)
    for _ in range(rounds):
        yield order.sample(list(names), len(names))


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes; freeing its result is not part of it."""
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def medians(seconds: Mapping[Subject, Sequence[float]]) -> dict[Subject, float]:
    """The median of each subject's seconds."""
    return {key: statistics.median(values) for key, values in seconds.items()}


def check_subjects(asked: Sequence[str], known: Mapping[str, str]) -> None:
    """Raise SystemExit where a subject is unknown."""
    if unknown := set(asked) - set(known):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no such subject; there are {', '.join(known)}")


def processor() -> str:
    """The processor's name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "a processor")


def vectors() -> str:
    """The widest vectors that the processor has, as Linux says."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    known = {"amx_tile": "AMX and AVX-512", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    return next((name for flag, name in known.items() if flag in flags), "unknown vectors")


def product_flops(*, torch: bool, side: int = 2048) -> float:
    """FLOP/s of this library's product of two square float32 matrices, the fastest of 5."""
    if torch:
        import torch as library  # pyright: ignore[reportMissingImports]

        a = library.ones(side, side)
        multiply: Any = partial(library.mm, a, a)
    else:
        import jax

        x = jax.numpy.ones((side, side))
        product = jax.jit(lambda x: x @ x)
        multiply = lambda: jax.block_until_ready(product(x))  # noqa: E731
    multiply()
    return 2 * side**3 / min(seconds_of(multiply) for _ in range(5))
