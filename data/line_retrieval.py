"""Line retrieval: documents of lines "key value", and of keys asked for again, whose values are to be recalled.

    ringrl data line_retrieval --out datasets/lines.npy      # to train on: 2,048 documents of 32,832 tokens
    ringrl data line_retrieval --out datasets/lines_32k.npy --lines 10666 --queries 256 --blocks 1 --documents 4

The task by which Ring Attention measures recall (Liu et al. 2023, arXiv 2310.01889, section 5.4; LongChat's lines), in
token ids: a line is three tokens, the two words of its key and its value. A query is the same three tokens once more,
so that the value is what a language model predicts after the key; `NAME.weights.npy` is 1 there and 0 elsewhere, for
lines themselves are random. The keys of a document differ, and none is asked for twice: only its line has the value.

With `--blocks B` a document is B blocks, each of some new lines and then queries about lines so far. Then what a
document begins with is a shorter document: one file trains rows of any length. With one block all lines come
first, as in the paper. Words are the ids below 2 W, the first words of keys before the second ones; values follow.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Int64

from ringrl.errors import UserError
from ringrl.files import atomic_file
from ringrl.formats.token_file import weights_path
from ringrl.progress import tracked


@dataclass(frozen=True)
class Args:
    """Write a file of documents, and their weights beside it."""

    out: Path
    """The file of token ids to make, NAME.npy."""
    lines: int = 7296
    """Of a document."""
    queries: int = 3648
    """Of a document; each asks for another line."""
    blocks: int = 3648
    """Of a document; both numbers are multiples of it."""
    documents: int = 2048
    """How many."""
    words: int = 256
    """Words W that each half of a key is drawn from."""
    values: int = 64
    """Values that a line can have."""
    seed: int = 0
    """Fixes all documents."""
    overwrite: bool = False
    """Replace a file of that name."""


def main(args: Args) -> None:
    """Write the documents.

    Raises:
        UserError: in one line, for numbers that do not fit together, or a file that exists.
    """
    _check(args)
    rng = np.random.default_rng(args.seed)
    vocabulary = 2 * args.words + args.values
    ids = np.empty((args.documents, 3 * (args.lines + args.queries)), np.min_scalar_type(vocabulary))
    weights = np.empty(ids.shape, np.uint8)
    for document in tracked(range(args.documents), "writing documents", args.documents):
        ids[document], weights[document] = write_document(rng, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for path, values in ((weights_path(args.out), weights), (args.out, ids)):
        with atomic_file(path) as partial:
            np.save(partial, values)
    print(f"{args.out}: {args.documents} documents of {ids.shape[1]:,} tokens, a vocabulary of {vocabulary}")


def write_document(
    rng: np.random.Generator, args: Args
) -> tuple[Int64[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]:
    """One document's ids, and which of them are answers: the values of its queries.

    Args:
        rng: draws it.
        args: `lines`, `queries`, `blocks`, `words` and `values`.
    """
    key = rng.choice(args.words**2, args.lines, replace=False)
    value = rng.integers(args.values, size=args.lines)
    written, again = _order(rng, args)
    first, second = np.divmod(key, args.words)
    triples = np.stack([first, args.words + second, 2 * args.words + value], axis=1)
    answers = np.zeros((len(written), 3), bool)
    answers[again, 2] = True
    return triples[written].reshape(-1), answers.reshape(-1)


def _order(rng: np.random.Generator, args: Args) -> tuple[Int64[np.ndarray, " triples"], Bool[np.ndarray, " triples"]]:
    """The line that each triple of a document is, and whether it is written again: a query."""
    new, asked = args.lines // args.blocks, args.queries // args.blocks
    never: list[int] = []  # lines that were not asked for
    written: list[int] = []
    for block, draws in enumerate(rng.random((args.blocks, asked))):
        lines = range(block * new, (block + 1) * new)
        never += lines
        written += lines
        for draw in draws:
            chosen = int(draw * len(never))
            never[chosen], never[-1] = never[-1], never[chosen]
            written.append(never.pop())
    again = np.tile(np.repeat([False, True], [new, asked]), args.blocks)
    return np.array(written, np.int64), again


def _check(args: Args) -> None:
    if min(args.lines, args.queries, args.blocks, args.documents, args.words, args.values) < 1:
        raise UserError("--lines, --queries, --blocks, --documents, --words and --values: give 1 or more of each")
    if args.lines % args.blocks or args.queries % args.blocks:
        raise UserError(f"--blocks {args.blocks}: does not divide {args.lines} lines and {args.queries} queries")
    if args.queries > args.lines:
        raise UserError(f"--queries {args.queries}: none is asked for twice, so give at most the {args.lines} lines")
    if args.lines > args.words**2:
        raise UserError(f"--lines {args.lines}: {args.words} words make {args.words**2} keys; give more --words")
    if args.out.suffix != ".npy":
        raise UserError(f"{args.out}: token ids are a .npy file; give it that suffix")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out}: exists; give --overwrite to replace it, or another --out")


if __name__ == "__main__":
    main(tyro.cli(Args))
