"""What the ring gives: the student of docs/results.md row 0, trained on one device and on rings of 4 and 8.

    python -m benchmarks.ring_context              # some 8 minutes on 2 cores
    python -m benchmarks.ring_context --cores 1 --questions 3    # the third alone, on one
    python -m benchmarks.ring_context --quick      # at a size that measures nothing

It uses row 0's first student, its data and its teacher (`--run`); where that run is not there, `python -m
benchmarks.results small --only relabelled` makes it first, once, in some 12 minutes. Devices are simulated CPU devices,
which share the same cores, so a ring computes no faster here. What it changes on one machine is the memory of a
device: what a context needs is divided by the number of devices. Three questions:

1. Is it the same run? The student is trained from its seed on contexts of 128 trajectories, 12,800 tokens, on 1, 4 and
   8 devices. Compared with one device are the loss of every step and its gradient: the largest difference of an entry
   over the largest entry of that step's gradient. Each goes on from its own parameters, so differences may add up.
2. Does it earn the same? The trained student, after 128 trajectories in its context, on one device and with its cache
   spread over 4 (`ringrl evaluate --mesh seq=4`): the largest difference of a return, of 400.
3. What does a token cost, by the length of the context? One context a row of 1,000 to 128,000 tokens, on one device;
   the same with plain attention, which has all scores in memory (`dense_attention`), where that is below `--limit`. A
   figure is the median of a few forward and backward passes, from 64,000 tokens on of one; `core s` is the processor
   time of all cores, which other work on the machine changes little. Memory is of XLA's buffer assignment, the
   temporaries of one device, compiled for 1, 4 and 8; `resident` is by how much the process grew.

`of peak` is model FLOPs utilisation: what a step needs over what a large matrix product does in as much processor time.
Heads here are 32 wide, so exponentials weigh more beside products than with 64 or 128. No program comes from a compile
cache.

The last line is one JSON object: `losses` and `gradients` (largest relative difference by ring), `returns` (largest
difference); by tokens `tokens_per_s`, `tokens_per_core_s`, both for `dense` too, and `mebibytes` (dense, and by ring);
and the processor.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks._results_relabelled import STUDENT, TEST
from benchmarks._ring_context_worker import TRIAL, Case, Found, work
from benchmarks._workers import processor, run_once
from ringrl.returns import read_returns

RINGS = (1, 4, 8)
LENGTHS = {10: (16, 5, ()), 40: (4, 3, ()), 160: (1, 3, ()), 640: (1, 1, RINGS[1:]), 1280: (1, 1, RINGS[1:])}
"""Trajectories in a context -> rows, timed calls, rings that are compiled. 16,000 tokens, or one row if longer."""
QUICK = {10: (2, 1, ()), 40: (1, 1, RINGS[1:])}


@dataclass(frozen=True)
class Args:
    """Train, evaluate and time row 0's student on one device and on rings."""

    run: Path = STUDENT.run(0)
    """Row 0's student."""
    test: Path = TEST[-1].out
    """The store whose trajectories it is given."""
    steps: int = 5
    """Training steps that are compared."""
    envs: int = 8
    """Environments of the evaluation."""
    cores: int = 2
    """Processor cores that all share."""
    limit: int = 6
    """GiB of temporaries above which plain attention is compiled but not run."""
    questions: tuple[int, ...] = (1, 2, 3)
    """Which of the three."""
    quick: bool = False
    """Contexts of 16 trajectories, lengths up to 4,000, 2 steps."""
    case: str = ""
    """Used by the benchmark itself: what this process computes, as JSON."""
    out: Path | None = None
    """Used by the benchmark itself: where it saves losses and gradients."""


def main(args: Args) -> None:
    """Print three tables and the JSON."""
    if args.case:
        return work(Case(**json.loads(args.case)), args.run, args.steps, args.out)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of all processes that this starts
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    if not args.run.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.results", "small", "--only", "relabelled"], check=True)
    print(f"{processor()}, {args.cores} cores; {args.run}")
    trajectories, answers = 16 if args.quick else 128, {}
    with tempfile.TemporaryDirectory() as folder:
        if 1 in args.questions:
            answers |= compare_training(args, Case(trajectories), Path(folder))
        if 2 in args.questions:
            answers["returns"] = compare_returns(args, trajectories, Path(folder))
    if 3 in args.questions:
        print_header()
        chosen = QUICK if args.quick else LENGTHS
        answers |= summary([measure_length(args, trajectories, *how) for trajectories, how in chosen.items()])
    print(json.dumps(answers | {"processor": processor(), "cores": args.cores}))


def ask(args: Args, case: Case, *more: str) -> Found:
    """What a process of its own finds out about a case."""
    options = ["--run", str(args.run), "--case", json.dumps(vars(case)), *more]
    return Found(**run_once("benchmarks.ring_context", options))


def compare_training(args: Args, case: Case, folder: Path) -> dict[str, dict[int, float]]:
    """The largest relative differences from one device, by ring: of the losses, and of the gradients' entries."""
    steps = 2 if args.quick else args.steps
    print(f"\n{steps} training steps on contexts of {case.tokens:,} tokens, and their gradients")
    print(f"{'devices':>8}{'losses differ':>16}{'gradients differ':>18}{'s a gradient':>14}{'MiB a device':>14}")
    losses, gradients, one = {}, {}, None
    for ring in RINGS:
        out = folder / f"{ring}.npz"
        found = ask(args, replace(case, ring=ring), "--steps", str(steps), "--out", str(out))
        with np.load(out) as saved:
            mine = saved["losses"], saved["gradients"]
        one = mine if one is None else one
        losses[ring], gradients[ring] = (_difference(*pair) for pair in zip(mine, one, strict=True))
        numbers = f"{losses[ring]:>16.1e}{gradients[ring]:>18.1e}{found.seconds:>14.2f}"
        print(f"{ring:>8}{numbers}{found.temporaries / 2**20:>14,.1f}", flush=True)
    return {"losses": losses, "gradients": gradients}


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the steps, the largest difference of an entry over the largest entry of the step."""
    rows = expected.reshape(len(expected), -1)
    differences = np.abs(found.reshape(rows.shape) - rows).max(axis=1)
    return float((differences / np.abs(rows).max(axis=1)).max())


def compare_returns(args: Args, trajectories: int, folder: Path) -> float:
    """The largest difference between returns of the trained student on one device and on a ring of 4."""
    found = {}
    for ring in (1, 4):
        copy = folder / f"on_{ring}"
        shutil.copytree(args.run, copy, ignore=shutil.ignore_patterns("evaluation"))  # the run's own tables stay
        options = f"--no-reference --trials 1 --envs {args.envs} --context {(trajectories + 1) * TRIAL}"
        shown = f"--demonstrations {args.test} --trajectories {trajectories} --order random --mesh seq={ring}"
        command = [sys.executable, "-m", "ringrl.cli", "evaluate", str(copy), *options.split(), *shown.split()]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"RINGRL_CPU_DEVICES": str(ring)}
        )
        found[ring] = np.array([row.return_ for row in read_returns(copy / "evaluation" / "returns.csv")])
    largest = float(np.abs(found[4] - found[1]).max())
    means = " and ".join(f"{found[ring].mean():.2f}" for ring in found)
    print(f"\nreturns of {args.envs} environments after {trajectories} trajectories, on 1 and 4 devices: {means} on")
    print(f"average; no return differs by more than {largest:.2g} of 400", flush=True)
    return largest


@dataclass(frozen=True)
class Length:
    """What was found at one length of the context."""

    case: Case
    ours: Found
    dense: Found
    rings: dict[int, Found]  # by number of devices; only compiled

    def rate(self, seconds: float | None) -> float | None:
        """Tokens a second; None where it was not run."""
        return None if seconds is None else self.case.rows * self.case.tokens / seconds


def measure_length(args: Args, trajectories: int, rows: int, calls: int, rings: tuple[int, ...]) -> Length:
    """One length: blockwise and plain attention on one device, and what a device of a ring needs; printed."""
    case = Case(trajectories, rows, calls=calls)
    dense = ask(args, replace(case, dense=True, calls=min(calls, 2), limit=args.limit * 2**30))
    found = Length(case, ask(args, case), dense, {n: ask(args, replace(case, ring=n, calls=0)) for n in rings})
    print_length(found)
    return found


def print_header() -> None:
    """Of the third table."""
    print("\nforward and backward pass by tokens of context; MiB are a device's temporaries")
    rings = "".join(f"{f'ring {n}':>9}" for n in RINGS[1:])
    ours = f"{'rows':>5}{'s':>9}{'core s':>9}{'tokens/s':>10}{'of peak':>9}{'resident':>10}{'MiB':>9}{rings}"
    print(f"{'tokens':>8}{ours}{'plain: tokens/s':>18}{'MiB':>12}", flush=True)


def print_length(each: Length) -> None:
    """A row of the third table."""
    x, case = each.ours, each.case
    speed = f"{case.rows:>5}{x.seconds:>9.2f}{x.core_seconds:>9.2f}{each.rate(x.seconds):>10,.0f}{x.mfu:>9.1%}"
    rings = "".join(f"{mebibytes(each.rings[n].temporaries) if n in each.rings else '':>9}" for n in RINGS[1:])
    plain = f"{each.rate(each.dense.seconds):,.0f}" if each.dense.seconds else "too much"
    plain = f"{plain:>18}{mebibytes(each.dense.temporaries):>12}"
    sizes = f"{mebibytes(x.resident):>10}{mebibytes(x.temporaries):>9}{rings}"
    print(f"{case.tokens:>8,}{speed}{sizes}{plain}", flush=True)


def mebibytes(count: int | None) -> str:
    """Bytes as a table shows them."""
    return "" if count is None else f"{count / 2**20:,.0f}"


def summary(lengths: list[Length]) -> dict[str, Any]:
    """The third question's part of the JSON line."""
    found: dict[str, Any] = {"mebibytes": {}}
    for each in lengths:
        tokens, subjects = each.case.tokens, {"dense": each.dense, 1: each.ours} | each.rings
        found["mebibytes"][tokens] = {of: round(x.temporaries / 2**20, 1) for of, x in subjects.items()}
        for name, of in (("", each.ours), ("dense_", each.dense)):
            for unit, seconds in (("s", of.seconds), ("core_s", of.core_seconds)):
                rate = each.rate(seconds)
                found.setdefault(f"{name}tokens_per_{unit}", {})[tokens] = rate and round(rate)
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
