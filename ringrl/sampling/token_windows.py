"""A file of token ids -> batches for a language model: windows of the text, at places drawn anew for every row."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int64

from ringrl.errors import UserError
from ringrl.sampling.loader import ROWS


class Text:
    """Token ids in a `.npy` file, one after the other: whole numbers, one axis. Read where they are asked for.

    Attributes:
        path: the file.
        ids: the file's memory map, [tokens].
    """

    def __init__(self, path: Path, vocabulary: int):
        """Open the file. UserError where it is missing, or holds no token ids; ids are below `vocabulary`."""
        self.path, self._vocabulary = path, vocabulary
        try:
            self.ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: no file of token ids: {error}; write one with numpy.save") from error
        if not isinstance(self.ids, np.ndarray):
            raise UserError(f"{path}: an archive of arrays; token ids are a single one, written with numpy.save")
        if self.ids.ndim != 1 or self.ids.dtype.kind not in "iu":
            raise UserError(f"{path}: holds {self.ids.dtype} {self.ids.shape}; token ids are whole numbers on one axis")

    def checksum(self) -> int:
        """CRC-32 of the dtype and of some thousand ids spread over the text, to tell texts of one length apart."""
        some = np.ascontiguousarray(self.ids[:: max(len(self.ids) // 4096, 1)])
        return zlib.crc32(some.tobytes(), zlib.crc32(some.dtype.str.encode()))

    def window(self, start: int, positions: Int64[np.ndarray, " steps"]) -> dict[str, np.ndarray]:
        """The tokens at `positions` of the window that begins at `start`, and those that follow them; int32 [steps].

        Raises UserError where an id is not in the vocabulary.
        """
        token, target = (self.ids[start + positions + shift] for shift in (0, 1))
        for ids in (token, target):
            if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
                raise UserError(
                    f"{self.path}: ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {self._vocabulary}; "
                    "set agent.bins to the tokenizer's"
                )
        ones = np.ones(len(positions))
        numbers = {"position": positions.astype(np.int32), "segment_ids": ones.astype(np.int32)}
        token, target = token.astype(np.int32), target.astype(np.int32)
        return {"token": token, "target": target, **numbers, "weight": ones.astype(np.float32)}


def text_batches(
    text: Text,
    *,
    rows: Int64[np.ndarray, " rows"],
    steps: int,
    positions: Int64[np.ndarray, " local"],
    seed: int,
    start_step: int = 0,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end: `token` and `target` (the next one), `position`, `segment_ids`, `weight`, [rows, local].

    Row r of step s depends on (seed, s, r) alone, as in `ringrl.sampling.loader`.

    Args:
        text: the file.
        rows: which rows of a batch are wanted here.
        steps: tokens of a row, over all processes.
        positions: places in the row that are wanted here, in their order.
        seed: fixes every batch, together with the batch's index.
        start_step: index of the first batch to give.
        prefetch: batches held ready.

    Raises:
        UserError: the text is shorter than a row.
    """
    places = len(text.ids) - steps  # a row's last token needs the one after it
    if places < 1:
        raise UserError(f"{text.path}: {len(text.ids):,} tokens do not make a row of {steps:,} and the token after it")

    def read(element: int) -> dict[str, np.ndarray]:
        step, local = divmod(int(element), len(rows))
        rng = np.random.default_rng(np.random.SeedSequence([seed, step, int(rows[local])]))
        return text.window(int(rng.integers(places)), positions)

    dataset = grain.MapDataset.range(start_step * len(rows), ROWS).map(read)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch * len(rows))
    return _closing(iter(dataset.to_iter_dataset(options).batch(len(rows), drop_remainder=True)))


def _closing(iterator: grain.DatasetIterator) -> Iterator[dict[str, np.ndarray]]:
    try:
        yield from iterator
    finally:
        iterator.close()
