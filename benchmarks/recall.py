"""Recall over a context: line retrieval, learned from documents of 64 to 4,096 tokens and asked for in up to 131,072.

    python -m benchmarks.recall                                     # every encoding of positions, one seed
    python -m benchmarks.recall --seeds 3 --only none --exact 131072

A document is lines, a key of three words and its value, four tokens a line, and then questions; `ringrl data
line_retrieval`. A row of the table is `configs/recall.yaml` with another encoding of positions, trained on documents of
64 tokens and then, resumed, on longer ones. A figure is the share of 1,024 questions that are answered right, of all
256 ids, about documents that training never saw; a guess among the values is right once in 64.

Then the answers of the first row's model in documents of `--exact` tokens, computed in other ways: from a KV cache that
gets 512 tokens a call, of three types, and over a ring of 4 simulated devices. The last line is one JSON object: the
shares by row, seed and length, and the largest difference of any id's log-probability from that of one pass. What is
trained or measured is kept in `--out`, so a run that was stopped goes on.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from ringrl.errors import UserError
from ringrl.files import write_text

if TYPE_CHECKING:
    from benchmarks._recall_runs import Questions

RING, VOCABULARY = 4, 256
ROTARY = {"model.position_encoding": "rotary"}
LINES = ROTARY | {"model.rope_base": 1e8, "agent.line": 4}
ROWS: dict[str, tuple[dict[str, Any], int]] = {
    "none": ({}, 4096),
    "none, trained to 32,768": ({}, 32_768),
    "none, trained on 64": ({}, 64),
    "rotary, base 1e4": (ROTARY | {"model.rope_base": 1e4}, 4096),
    "rotary, base 1e6": (ROTARY | {"model.rope_base": 1e6}, 4096),
    "rotary, base 1e8": (ROTARY | {"model.rope_base": 1e8}, 4096),
    "rotary, base 1e8; lines rotary": (LINES | {"model.trial_encoding": "rotary"}, 4096),
    "rotary, base 1e8; lines a table": (LINES | {"model.trial_encoding": "table"}, 4096),
}
"""Row of the table -> settings, and tokens of the longest documents that it is trained on."""


@dataclass(frozen=True)
class Args:
    """Measure recall by length and encoding of positions."""

    lengths: tuple[int, ...] = (64, 512, 4096, 32_768, 131_072)
    """Tokens of the documents in which questions are asked."""
    seeds: int = 1
    """Training seeds of every row."""
    only: tuple[str, ...] = tuple(ROWS)
    """Which rows."""
    exact: int = 32_768
    """Tokens at which a cache and a ring are compared with one pass; 0: they are not."""
    out: Path = Path("runs/recall")
    """Folder of documents, runs and measured.json."""


def main(args: Args) -> None:
    """Train what is not trained, measure what is not measured, and print both."""
    if unknown := set(args.only) - set(ROWS):
        raise SystemExit(f"--only {', '.join(unknown)}: choose from {', '.join(ROWS)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_num_cpu_devices", RING)
    found = {name: [_shares(name, seed, args) for seed in range(args.seeds)] for name in args.only}
    print(f"\nshare answered right, {args.seeds} seed(s){'':<7}" + "".join(f"{length:>10,}" for length in args.lengths))
    for name, shares in found.items():
        print(f"{name:<40}" + "".join(f"{share:>10.3f}" for share in np.mean(shares, axis=0)))
    figures: dict[str, Any] = {name: np.round(shares, 4).tolist() for name, shares in found.items()}
    result = {"lengths": args.lengths, "right": figures}
    print(json.dumps(result | ({"exact": _compare_ways(args)} if args.exact else {})))


def _shares(name: str, seed: int, args: Args) -> list[float]:
    """The share answered right at each length, by the row's model of that seed."""
    from benchmarks import _recall_runs as runs

    settings, longest = ROWS[name]
    run, measured = _run(name, seed, args), args.out / "measured.json"
    shares = []
    for length in args.lengths:
        key, known = f"{run.name}/{longest}/{length}", json.loads(measured.read_text()) if measured.exists() else {}
        if key not in known:
            runs.grow(run, settings, longest, args.out / "documents", seed)
            model, previous = runs.load(run, longest)
            questions = _questions(length, previous, args)
            began = time.perf_counter()
            known[key] = float(questions.right(runs.in_one_pass(model, questions)).mean())
            write_text(measured, json.dumps(known))
            seconds = time.perf_counter() - began
            print(f"{name}, seed {seed}, {length:,} tokens: {known[key]:.3f} ({seconds:.0f} s)", flush=True)
        shares.append(known[key])
    return shares


def _compare_ways(args: Args) -> dict[str, Any]:
    """How far a cache's and a ring's log-probabilities are from those of one pass, and what each has right."""
    from benchmarks import _recall_runs as runs

    name = args.only[0]
    model, previous = runs.load(_run(name, 0, args), ROWS[name][1])
    questions = _questions(args.exact, previous, args)
    one = runs.in_one_pass(model, questions)
    found: dict[str, Any] = {"tokens": args.exact, "one_pass": {"right": float(questions.right(one).mean())}}
    ways = {
        "cache": lambda: runs.from_a_cache(model, questions),
        "cache_bfloat16": lambda: runs.from_a_cache(model, questions, "bfloat16"),
        "cache_int8": lambda: runs.from_a_cache(model, questions, "int8"),
        f"ring{RING}": lambda: runs.in_one_pass(model, questions, RING),
    }
    for way, compute in ways.items():
        began, logs = time.perf_counter(), compute()
        right, difference = float(questions.right(logs).mean()), float(np.abs(logs - one).max())
        found[way] = {"right": right, "difference": difference}
        seconds = time.perf_counter() - began
        print(f"{name}, {args.exact:,} tokens, {way}: {right:.3f}, differs by {difference:.1e} ({seconds:.0f} s)")
    return found


def _run(name: str, seed: int, args: Args) -> Path:
    """The run of a row, which rows of the same settings share."""
    settings = "_".join(f"{key.split('.')[1]}={value}" for key, value in ROWS[name][0].items()) or "none"
    return args.out / f"{settings}-seed{seed}"


def _questions(length: int, previous: int, args: Args) -> "Questions":
    from benchmarks import _recall_runs as runs

    return runs.Questions(runs.write_documents(args.out / "documents", length, test=True), VOCABULARY, previous)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
