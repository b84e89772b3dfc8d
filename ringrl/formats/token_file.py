"""A file of token ids: the text of a language model, already tokenized."""

import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from ringrl.errors import UserError


class TokenFile:
    """Token ids in a `.npy` file, one after the other: whole numbers on one axis. They are read when asked for.

    Attributes:
        path: the file.
        ids: the file's memory map, [tokens], of the file's integer type.
    """

    def __init__(self, path: Path, vocabulary: int):
        """Open the file.

        Args:
            path: the file.
            vocabulary: ids are to be below it.

        Raises:
            UserError: the file is missing, or is not one array of whole numbers on one axis.
        """
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
        """CRC-32 of the dtype and of some thousand ids spread over the file, to tell files of one length apart."""
        some = np.ascontiguousarray(self.ids[:: max(len(self.ids) // 4096, 1)])
        return zlib.crc32(some.tobytes(), zlib.crc32(some.dtype.str.encode()))

    def read(self, at: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """The ids at these indices of the file.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        ids = self.ids[at]
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise UserError(
                f"{self.path}: ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {self._vocabulary}; "
                "set agent.bins to the tokenizer's"
            )
        return ids.astype(np.int32)
