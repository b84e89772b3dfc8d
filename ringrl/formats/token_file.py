"""A file of token ids: the text of a language model, already tokenized, or documents of one length."""

import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ringrl.errors import UserError


class TokenFile:
    """Token ids in a `.npy` file: a text on one axis, or documents of one length, one a row. Read when asked for.

    Beside NAME.npy there may be NAME.weights.npy, numbers in the same shape: the loss weight of predicting each token.

    Attributes:
        path: the file.
        ids: the file's memory map, [tokens], of the file's integer type; documents one after the other.
        document: tokens of a document; None: the file is one text.
        weights: the memory map of the weights, [tokens]; None: there are none.
    """

    def __init__(self, path: Path, vocabulary: int):
        """Open the file.

        Args:
            path: the file.
            vocabulary: ids are to be below it.

        Raises:
            UserError: the file is missing, or is not one array of whole numbers on one axis or two; its weights are not
                numbers of the same shape.
        """
        self.path, self._vocabulary = path, vocabulary
        ids = _open(path, "token ids")
        if ids.ndim not in (1, 2) or ids.dtype.kind not in "iu":
            raise UserError(
                f"{path}: holds {ids.dtype} {ids.shape}; token ids are whole numbers [tokens] or [documents, tokens]"
            )
        self.ids, self.document = ids.reshape(-1), ids.shape[1] if ids.ndim == 2 else None
        beside, self.weights = weights_path(path), None
        if beside.exists():
            weights = _open(beside, "loss weights")
            if weights.shape != ids.shape or weights.dtype.kind not in "biuf":
                raise UserError(
                    f"{beside}: holds {weights.dtype} {weights.shape}; the weights of {path} are numbers {ids.shape}"
                )
            self.weights = weights.reshape(-1)

    def checksum(self) -> int:
        """CRC-32 of dtype, length of documents and some thousand ids, and of the weights, to tell files apart."""
        total = 0 if self.document is None else zlib.crc32(str(self.document).encode())
        for values in (self.ids,) if self.weights is None else (self.ids, self.weights):
            some = np.ascontiguousarray(values[:: max(len(values) // 4096, 1)])
            total = zlib.crc32(some.tobytes(), zlib.crc32(some.dtype.str.encode(), total))
        return total

    def read(self, at: Int64[np.ndarray, "*n"]) -> Int32[np.ndarray, "*n"]:
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

    def read_weights(self, at: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """The loss weights of predicting the tokens at these indices of the file; 1 where the file has no weights."""
        return np.ones(len(at), np.float32) if self.weights is None else self.weights[at].astype(np.float32)


def weights_path(path: Path) -> Path:
    """Where the loss weights of a file of token ids are: NAME.npy -> NAME.weights.npy."""
    return path.with_suffix(".weights.npy")


def _open(path: Path, what: str) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy's parser of headers raises errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: no file of {what}: {reason[:200]}; write one with numpy.save") from error
    if not isinstance(values, np.ndarray):
        raise UserError(f"{path}: an archive of arrays; {what} are a single one, written with numpy.save")
    return values
