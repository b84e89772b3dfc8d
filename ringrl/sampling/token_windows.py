"""Token ids -> batches for a language model: windows of a text, or documents, drawn anew for every row."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int64

from ringrl.batch import PrecededTokenBatch, TokenBatch
from ringrl.errors import UserError
from ringrl.formats.token_file import TokenFile
from ringrl.sampling.loader import ROWS, closing_at_end


def token_batches(
    tokens: TokenFile,
    *,
    rows: Int64[np.ndarray, " rows"],
    steps: int,
    positions: Int64[np.ndarray, " positions"],
    seed: int,
    start_step: int = 0,
    previous: int = 0,
    prefetch: int = 2,
) -> Iterator[TokenBatch]:
    """An endless stream of batches of the ids x: row r of a batch is a window that begins at a uniform index i.

        token_t = x_{i+t},   target_t = x_{i+t+1},   i ~ Uniform{0, ..., len(x) - steps - 1}

    or, of a file of documents, at the first token of a uniform document. The weight at t is that of the target; nothing
    follows a document's last token, and there it is 0. Row r of step s depends on (seed, s, r) alone, as in
    `ringrl.sampling.loader`.

    Args:
        tokens: the ids.
        rows: indices of the rows that are wanted here.
        steps: tokens of a row, over all processes.
        positions: positions t of the row that are wanted here, in the order wanted.
        seed: fixes every batch, together with the batch's index.
        start_step: index of the first batch to give.
        previous: ids before each token that come with it; a row knows none before its first.
        prefetch: batches kept ready.

    Returns:
        An iterator over the wanted part of every batch, [rows, positions]. An id that is not in the vocabulary raises
        UserError from `next`.

    Raises:
        UserError: a document is shorter than a row, or the text than a row and the token after it.
    """
    length = tokens.document or len(tokens.ids)
    if tokens.document is not None and length < steps:
        raise UserError(f"{tokens.path}: {length:,} tokens of a document do not make a row of {steps:,}")
    if tokens.document is None and length <= steps:
        raise UserError(f"{tokens.path}: {length:,} tokens do not make a row of {steps:,} and the token after it")

    def read(element: int) -> dict[str, np.ndarray]:
        step, local = divmod(int(element), len(rows))
        (start,) = row_starts(tokens, rows[[local]], steps, seed, step)
        return token_row(tokens, int(start), positions, previous)

    dataset = grain.MapDataset.range(start_step * len(rows), ROWS).map(read)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch * len(rows))
    batches = dataset.to_iter_dataset(options).batch(len(rows), drop_remainder=True)
    kind = PrecededTokenBatch if previous else TokenBatch
    return closing_at_end(iter(batches.map(lambda arrays: kind(**arrays))))


def row_starts(
    tokens: TokenFile, rows: Int64[np.ndarray, " rows"], steps: int, seed: int, step: int
) -> Int64[np.ndarray, " rows"]:
    """The indices in the file of the first tokens of rows of batch `step`; arguments as of `token_batches`."""
    document = tokens.document
    starts, apart = (len(tokens.ids) - steps, 1) if document is None else (len(tokens.ids) // document, document)
    generators = [np.random.default_rng(np.random.SeedSequence([seed, step, int(row)])) for row in rows]
    return np.array([rng.integers(starts) * apart for rng in generators], np.int64)


def token_row(
    tokens: TokenFile, start: int, positions: Int64[np.ndarray, " positions"], previous: int = 0
) -> dict[str, np.ndarray]:
    """The fields of one row, without the axis of rows: of `TokenBatch` or, with `previous`, `PrecededTokenBatch`.

    Args:
        tokens: the ids.
        start: index in the file of the row's first token.
        positions: as in `token_batches`.
        previous: ids before each token that come with it.
    """
    length = tokens.document or len(tokens.ids) - start
    follows = positions < length - 1
    at, after = start + positions, start + positions + follows
    fields = {
        "token": tokens.read(at),
        "target": tokens.read(after),
        "position": positions.astype(np.int32),
        "segment_ids": np.ones(len(positions), np.int32),
        "weight": np.where(follows, tokens.read_weights(after), np.float32(0)),
    }
    if previous:
        back = np.arange(1, previous + 1)
        known = positions[:, None] >= back
        fields["previous"] = np.where(known, tokens.read(np.where(known, at[:, None] - back, start)), np.int32(0))
    return fields
