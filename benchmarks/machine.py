"""Every benchmark in turn on this machine, as one JSON file; and the files of several machines side by side.

    pip install -e ".[bench]"
    python -m benchmarks.machine                                # all, some hours on 2 cores; `make bench` does it
    python -m benchmarks.machine --only attention train_step    # these, 40 minutes
    python -m benchmarks.machine --compare zen4.json xeon.json  # their ratios, as a Markdown table

The file has the processor's name, its cores and its widest vectors, and each benchmark's last line. It is written after
every benchmark, and those that it has are not run again, so a run that was stopped goes on; `--fresh` starts over. A
ratio from one processor is no claim about another: the table's first column is the machine with the worst ratios.
Nothing else may run meanwhile.

There is no peer: what each benchmark compares with, it says itself. The last line is the file's JSON.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from benchmarks._workers import processor, vectors

_NOT_OF_A_MACHINE = (
    "machine",
    "results",
    "faults",
    "recall",
    "max_context",
    "activations",
    "endurance",
    "ring_context",
)
"""Scripts whose figures do not depend on how fast a machine is, or that are rows of docs/results.md."""


@dataclass(frozen=True)
class Args:
    """Run the benchmarks of speed and memory."""

    only: tuple[str, ...] = ()
    """Which; default all whose figures depend on the machine."""
    out: Path | None = None
    """The file; default runs/bench/PROCESSOR-CORES.json."""
    fresh: bool = False
    """Run again what the file has."""
    compare: tuple[Path, ...] = ()
    """Run nothing: print the ratios of these files side by side."""


def main(args: Args) -> None:
    """Run what is missing, or compare files. The status is 1 where a benchmark failed."""
    if args.compare:
        print("\n".join(compare([_read(path) for path in args.compare])))
        return
    names = args.only or scripts()
    if unknown := [name for name in names if not Path(__file__).with_name(f"{name}.py").is_file()]:
        sys.exit(f"--only {unknown[0]}: no such benchmark; there are {', '.join(scripts())}")
    out = args.out or Path("runs/bench") / f"{_file_name(processor())}-{len(os.sched_getaffinity(0))}.json"
    found = _read(out) if out.exists() and not args.fresh else {"machine": about(), "benchmarks": {}}
    if found["machine"]["processor"] != processor():
        sys.exit(f"{out}: is of {found['machine']['processor']}, this is {processor()}; give another --out")
    failed = [name for name in names if name not in found["benchmarks"] and not _add(found, name, out)]
    print(json.dumps(found))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def scripts() -> list[str]:
    """The names of the benchmarks whose figures depend on the machine."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    return [name for name in names if name not in _NOT_OF_A_MACHINE]


def about() -> dict[str, Any]:
    """What the figures are of."""
    packages = {name: version(name) for name in ("ringrl", "jax", "jaxlib", "numpy")}
    cores = len(os.sched_getaffinity(0))
    return {"processor": processor(), "cores": cores, "vectors": vectors(), "packages": packages}


def _add(found: dict[str, Any], name: str, out: Path) -> bool:
    """Run one benchmark, showing what it prints, and keep its last line; False where it failed."""
    print(f"== {name}", flush=True)
    began, last = time.perf_counter(), ""
    with subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    if process.returncode:
        return False
    found["benchmarks"][name] = {"seconds": round(time.perf_counter() - began), "figures": json.loads(last)}
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.replace(out)
    return True


def compare(machines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table: a row a ratio, a column a machine, the one with the worst ratios first."""
    ordered = sorted(machines, key=_mean_ratio)
    names = [f"{m['machine']['processor']}, {m['machine']['cores']} cores, {m['machine']['vectors']}" for m in ordered]
    yield f"| benchmark | ratio | {' | '.join(names)} |"
    yield "|---" * (2 + len(names)) + "|"
    rows = [_ratios(machine) for machine in ordered]
    for key in dict.fromkeys(key for row in rows for key in row):
        cells = [f"{row[key]:.2f}" if key in row else "" for row in rows]
        yield f"| {key[0]} | {key[1]} | {' | '.join(cells)} |"


def _ratios(machine: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """What the benchmarks' last lines say of peers: above 1, ringrl is faster."""
    return {
        (name, figure): float(value)
        for name, each in machine["benchmarks"].items()
        for figure, value in each["figures"].items()
        if "vs_" in figure and isinstance(value, int | float) and not figure.startswith("size")
    }


def _mean_ratio(machine: Mapping[str, Any]) -> float:
    """The geometric mean."""
    values = [value for value in _ratios(machine).values() if value > 0]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.inf


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: is not what benchmarks.machine writes: {error}")
    if not isinstance(found, dict) or not {"machine", "benchmarks"} <= set(found):
        sys.exit(f"{path}: is not what benchmarks.machine writes")
    return found


def _file_name(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name).split())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
