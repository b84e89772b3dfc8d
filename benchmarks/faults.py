"""Faults, drawn and many: what ringrl does with damaged files.

    python -m benchmarks.faults                            # all parts, whole: minutes
    python -m benchmarks.faults --mutations 2000 --seed 1

Parts, each a file of its own:

    fuzzed    every reader of files is given mutated ones (benchmarks/_faults_fuzzed.py)
    flipped   one bit changes in checkpoints, exports, stores and runs (benchmarks/_faults_flipped.py)
    kills     every step is killed, and given again (benchmarks/_faults_kills.py)
    full      every step runs out of disk, and is given again (benchmarks/_faults_full.py; needs root)
    ends      commands are sent SIGINT or SIGTERM (benchmarks/_faults_ends.py)
    hashing   what hashes cost (benchmarks/_faults_hashing.py)

There is no peer. A table for each part says what was tried and what came of it. The last line is one JSON object:
`fuzzed`, the mutations that were read; `untyped`, those that ended in anything but a UserError of one line; `hangs`;
`flipped`, the bits; `silently_wrong`, those after which other numbers were read without a word; `kills`; `lost`,
`differing`, `torn`, `leftovers`, of them; `full`, the disks that filled up; `full_lost` and so on, of them; `ends`, the
signals; `crashed`, `wordless`, `left`, of those. The status is 1 if anything but the number of tries is not 0.
"""

import json
import sys
from dataclasses import dataclass

import tyro

from benchmarks._faults_ends import run_ends
from benchmarks._faults_flipped import run_flipped
from benchmarks._faults_full import run_full
from benchmarks._faults_fuzzed import run_fuzzed
from benchmarks._faults_hashing import run_hashing
from benchmarks._faults_kills import run_kills


@dataclass(frozen=True)
class Args:
    """Try what ringrl does with faults."""

    mutations: int = 100_000
    """Of files, over all readers."""
    flips: int = 600
    """Bits."""
    kills: int = 240
    """Of all steps together."""
    full: int = 75
    """Disks that fill up, of all steps together; 0 where none can be mounted."""
    ends: int = 60
    """Signals that are sent to real commands."""
    hashed: int = 256
    """Megabytes of the checkpoint and the store by which the cost of hashes is measured; 0: it is not."""
    only: str | None = None
    """Kill this step alone, and let it alone run out of disk."""
    seed: int = 0
    """Of everything that is drawn."""


def main(args: Args) -> None:
    """Print a table for each part, then the figures as JSON."""
    figures: dict[str, float] = {}
    if args.kills:  # first, for it forks: no other part may have started threads or JAX
        figures |= run_kills(args.kills, args.seed, args.only)
    if args.full:
        figures |= run_full(args.full, args.seed, args.only)
    if args.ends:
        figures |= run_ends(args.ends, args.seed)
    if args.flips:
        figures |= run_flipped(args.flips, args.seed)
    if args.mutations:
        figures |= run_fuzzed(args.mutations, args.seed)
    faults = dict(figures)
    if args.hashed:
        figures |= run_hashing(args.hashed)
    print(json.dumps(figures))
    if any(value for name, value in faults.items() if name not in ("fuzzed", "flipped", "kills", "full", "ends")):
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
