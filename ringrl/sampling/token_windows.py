"""Token ids -> batches for a language model: windows of a text, or documents, drawn anew for every row."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int64

from ringrl.batch import TokenBatch
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
    prefetch: int = 2,
) -> Iterator[TokenBatch]:
    """An endless stream of batches of the ids x: row r of a batch is a window that begins at a uniform index i.

        token_t = x_{i+t},   target_t = x_{i+t+1},   i ~ Uniform{0, ..., len(x) - steps - 1}

    or, of a file of documents, at the first token of a uniform document. The weight at t is that of the target. Row r
    of step s depends on (seed, s, r) alone, as in `ringrl.sampling.loader`.

    Args:
        tokens: the ids.
        rows: indices of the rows that are wanted here.
        steps: tokens of a row, over all processes.
        positions: positions t of the row that are wanted here, in the order wanted.
        seed: fixes every batch, together with the batch's index.
        start_step: index of the first batch to give.
        prefetch: batches kept ready.

    Returns:
        An iterator over the wanted part of every batch, [rows, positions]. An id that is not in the vocabulary raises
        UserError from `next`.

    Raises:
        UserError: the text, or a document, is shorter than a row.
    """
    length = tokens.document or len(tokens.ids)
    if length <= steps:  # a row's last token needs the one after it
        kind = "tokens" if tokens.document is None else "tokens of a document"
        raise UserError(f"{tokens.path}: {length:,} {kind} do not make a row of {steps:,} and the token after it")
    starts, apart = (length - steps, 1) if tokens.document is None else (len(tokens.ids) // length, length)

    def read(element: int) -> dict[str, np.ndarray]:
        step, local = divmod(int(element), len(rows))
        rng = np.random.default_rng(np.random.SeedSequence([seed, step, int(rows[local])]))
        at = int(rng.integers(starts)) * apart + positions
        return {
            "token": tokens.read(at),
            "target": tokens.read(at + 1),
            "position": positions.astype(np.int32),
            "segment_ids": np.ones(len(positions), np.int32),
            "weight": tokens.read_weights(at + 1),
        }

    dataset = grain.MapDataset.range(start_step * len(rows), ROWS).map(read)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch * len(rows))
    batches = dataset.to_iter_dataset(options).batch(len(rows), drop_remainder=True)
    return closing_at_end(iter(batches.map(lambda arrays: TokenBatch(**arrays))))
