"""Line retrieval: documents of lines "key value", then of keys asked for again, whose values are to be recalled.

    ringrl data line_retrieval --out datasets/lines_64.npy                     # 16,384 documents of 64 tokens
    ringrl data line_retrieval --out datasets/lines_32k.npy --lines 4096 --queries 4096 --documents 32

The task by which Ring Attention measures recall (Liu et al. 2023, arXiv 2310.01889, section 5.4; LongChat's lines), in
token ids, and multi-query associative recall (Arora et al. 2023, arXiv 2312.04927) with keys of several words. A line
is the words of its key and its value: four tokens by default. A query is the same tokens once more, so that the value
is what a language model predicts after the key; `NAME.weights.npy` is 1 there and 0 elsewhere, for lines themselves
are random. The keys of a document differ, and none is asked for twice: only its line has the value. All lines come
first.

Recall is learned in a minute from short documents of which half are questions, and hardly from long ones: begin with
documents of 64 tokens, then go on with longer ones (`configs/recall.yaml`). Word i of a key is one of W ids of its own,
from i W; values follow.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Int64

from ringrl.errors import UserError
from ringrl.files import alone_in, atomic_file, check_room
from ringrl.formats.token_file import weights_path
from ringrl.progress import tracked


@dataclass(frozen=True)
class Args:
    """Write a file of documents, and their weights beside it."""

    out: Path
    """The file of token ids to make, NAME.npy."""
    lines: int = 8
    """Of a document."""
    queries: int = 8
    """Of a document; each asks for another line."""
    documents: int = 16_384
    """How many."""
    key: int = 3
    """Words of a key."""
    words: int = 64
    """Words W that each word of a key is drawn from."""
    alike: int | None = None
    """Words of the W that the keys of one document are made of, drawn for each; None: all. Few make keys alike."""
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
    with alone_in(args.out.parent, f".{args.out.name}.lock", of=args.out):
        check_room(args.out.parent)
        _write(args)


def _write(args: Args) -> None:
    rng = np.random.default_rng(args.seed)
    vocabulary = args.key * args.words + args.values
    length = (args.key + 1) * (args.lines + args.queries)
    ids = np.empty((args.documents, length), np.min_scalar_type(vocabulary - 1))
    weights = np.empty(ids.shape, np.uint8)
    for document in tracked(range(args.documents), "writing documents", args.documents):
        ids[document], weights[document] = write_document(rng, args)
    for path, values in ((weights_path(args.out), weights), (args.out, ids)):
        with atomic_file(path) as partial:
            np.save(partial, values)
    print(f"{args.out}: {args.documents} documents of {length:,} tokens, a vocabulary of {vocabulary}")


def write_document(
    rng: np.random.Generator, args: Args
) -> tuple[Int64[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]:
    """One document's ids, and which of them are answers: the values of its queries.

    Args:
        rng: draws it.
        args: `lines`, `queries`, `key`, `words`, `alike` and `values`.
    """
    some = args.alike or args.words
    number = rng.choice(some**args.key, args.lines, replace=False)
    value = rng.integers(args.values, size=args.lines)
    used = [args.words * i + rng.choice(args.words, some, replace=False) for i in range(args.key)]
    words = [each[number // some**i % some] for i, each in enumerate(used)]
    lines = np.stack([*words, args.key * args.words + value], axis=1)
    asked = rng.permutation(args.lines)[: args.queries]
    answers = np.zeros((args.lines + args.queries, args.key + 1), bool)
    answers[args.lines :, -1] = True
    return np.concatenate([lines, lines[asked]]).reshape(-1), answers.reshape(-1)


def _check(args: Args) -> None:
    if min(args.lines, args.queries, args.documents, args.key, args.words, args.values) < 1:
        raise UserError("--lines, --queries, --documents, --key, --words and --values: give 1 or more of each")
    if args.queries > args.lines:
        raise UserError(f"--queries {args.queries}: none is asked for twice, so give at most the {args.lines} lines")
    if args.alike is not None and not 1 <= args.alike <= args.words:
        raise UserError(f"--alike {args.alike}: give 1 or more, and at most the {args.words} words")
    if args.lines > (args.alike or args.words) ** args.key:
        some = args.alike or args.words
        keys, option = some**args.key, "--words" if args.alike is None else "--alike"
        raise UserError(f"--lines {args.lines}: {args.key} of {some} words make {keys} keys; give more {option}")
    if args.out.suffix != ".npy":
        raise UserError(f"{args.out}: token ids are a .npy file; give it that suffix")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out}: exists; give --overwrite to replace it, or another --out")


if __name__ == "__main__":
    main(tyro.cli(Args))
