"""Faults, drawn and many: what ringrl does with damaged files.

    python -m benchmarks.faults                            # all parts, whole: minutes
    python -m benchmarks.faults --mutations 2000 --seed 1

Parts, each a file of its own:

    fuzzed    every reader of files is given mutated ones (benchmarks/_faults_fuzzed.py)

There is no peer. A table for each part says what was tried and what came of it. The last line is one JSON object:
`fuzzed`, the mutations that were read; `untyped`, those that ended in anything but a UserError of one line; `hangs`.
The status is 1 if anything but the number of tries is not 0.
"""

import json
import sys
from dataclasses import dataclass

import tyro

from benchmarks._faults_fuzzed import run_fuzzed


@dataclass(frozen=True)
class Args:
    """Try what ringrl does with faults."""

    mutations: int = 100_000
    """Of files, over all readers."""
    seed: int = 0
    """Of everything that is drawn."""


def main(args: Args) -> None:
    """Print a table for each part, then the figures as JSON."""
    figures = run_fuzzed(args.mutations, args.seed)
    print(json.dumps(figures))
    if figures["untyped"] or figures["hangs"]:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
