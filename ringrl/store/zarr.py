"""Zarr v3 arrays through TensorStore: sharded, compressed, checksummed, growing along their first axis.

A place is a folder, or a URL of a kind that TensorStore reads: `gs://`, `s3://`, `http://`, `https://`, `file://`.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import tensorstore as ts

from ringrl.errors import unwritable

_SHARD_BYTES = 2**25  # what a file holds at most before compression, and a writer buffers
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CHECKSUM = {"name": "crc32c"}
# TensorStore would try for a quarter of an hour to reach a host that is not there.
_RETRIES = {"max_retries": 6, "initial_delay": "250ms", "max_delay": "8s"}


def is_url(place: Path | str) -> bool:
    """Whether `place` is a URL and not a folder's path."""
    return "://" in str(place)


def open_context(cache_bytes: int) -> ts.Context:
    """A TensorStore context whose decoded chunks stay in memory up to `cache_bytes`."""
    retries = {f"{kind}_request_retries": _RETRIES for kind in ("http", "gcs", "s3")}
    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}, **retries})


def read_bytes(place: Path | str, name: str, context: ts.Context) -> bytes | None:
    """The file `name` in `place`; None where it is not there. Raises ValueError as `read_files`."""
    return read_files(place, [name], context)[name]


def read_files(place: Path | str, names: Iterable[str], context: ts.Context) -> dict[str, bytes | None]:
    """Files in `place` by name, all read at the same time; None where one is not there.

    Raises:
        ValueError: one cannot be read, or `place` is a URL of no kind that TensorStore knows.
    """
    store = ts.KvStore.open(_kvstore(place), context=context).result()
    found = {name: future.result() for name, future in [(name, store.read(name)) for name in names]}
    return {name: None if each.state == "missing" else each.value for name, each in found.items()}


def open_array(place: Path | str, name: str, context: ts.Context) -> "ts.Future[ts.TensorStore]":
    """Start opening the array `name` in `place`; it is never written again, and a missing chunk is then an error rather
    than zeros.
    """
    store = ts.KvStore.Spec(_kvstore(place)) / f"{name}/"
    return ts.open(
        {"driver": "zarr3", "kvstore": store.to_json(), "fill_missing_data_reads": False},
        read=True,
        open=True,
        context=context,
        recheck_cached_data=False,
        recheck_cached_metadata=False,
    )


def _kvstore(place: Path | str) -> Any:
    if not is_url(place):
        return {"driver": "file", "path": f"{place}/"}
    url = f"{str(place).rstrip('/')}/"
    # As Amazon's own tools, for the many servers that speak their protocol; TensorStore itself does not look there.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url.startswith("s3://") and endpoint:
        bucket, _, path = url.removeprefix("s3://").partition("/")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {"driver": "s3", "bucket": bucket, "path": unquote(path), "endpoint": endpoint, "aws_region": region}
    return url


class ColumnWriter:
    """Appends rows to a new array, a file at a time, so that memory is bounded by one file.

    Attributes:
        digest: SHA-256 of the numbers of all rows that are flushed, regardless of chunks and compression.
    """

    def __init__(
        self,
        path: Path,
        row_shape: tuple[int, ...],
        dtype: type[np.generic],
        *,
        chunk_rows: int,
        compressed: bool = False,
        file_rows: int | None = None,
    ):
        """Create the array with no rows.

        Args:
            path: its folder.
            row_shape: of one row.
            dtype: of the values.
            chunk_rows: what a read decodes at least.
            compressed: whether the files shall be small rather than fast to read.
            file_rows: rows in a file, a multiple of `chunk_rows`; None: about 32 MB of them.
        """
        row_bytes = int(np.prod(row_shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._buffer = np.empty((file_rows or shard_rows(row_bytes, chunk_rows), *row_shape), dtype)
        self._filled = 0
        self._written = 0
        self.digest = hashlib.sha256()
        self._path = path
        self._array = self._written_by(ts.open(_spec(path, self._buffer, chunk_rows, compressed), create=True))

    def append(self, rows: np.ndarray) -> None:
        """Add rows after the last. Raises UserError where they cannot be written."""
        while len(rows):
            count = min(len(rows), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rows[:count]
            self._filled += count
            rows = rows[count:]
            if self._filled == len(self._buffer):
                self.flush()

    def flush(self) -> None:
        """Write what is buffered. Between flushes of whole files no file is written twice.

        Raises:
            UserError: it cannot be written.
        """
        if not self._filled:
            return
        stop = self._written + self._filled
        self._array = self._written_by(self._array.resize(exclusive_max=[stop] + [None] * (self._array.rank - 1)))
        self._written_by(self._array[self._written : stop].write(self._buffer[: self._filled]))
        self.digest.update(self._buffer[: self._filled])  # pyright: ignore[reportArgumentType]
        self._written, self._filled = stop, 0

    def _written_by(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:
            raise unwritable(self._path, error) from error


def shard_rows(row_bytes: int, chunk_rows: int) -> int:
    """Rows in a file: whole chunks, about 32 MB before compression."""
    return chunk_rows * max(1, _SHARD_BYTES // (chunk_rows * row_bytes))


def write_array(path: Path, values: np.ndarray) -> None:
    """Write a whole array at once, of which a reader will want all."""
    rows = max(len(values), 1)
    writer = ColumnWriter(path, values.shape[1:], values.dtype.type, chunk_rows=rows, file_rows=rows)
    writer.append(values)
    writer.flush()


def _spec(path: Path, buffer: np.ndarray, chunk_rows: int, compressed: bool) -> dict[str, Any]:
    row_shape = buffer.shape[1:]
    # A row of a transposed chunk is one quantity over time, whose bytes resemble each other.
    blosc = {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": buffer.itemsize, "blocksize": 0}
    packed = [{"name": "transpose", "configuration": {"order": [1, 0]}}, _LITTLE]
    packed.append({"name": "blosc", "configuration": blosc})
    sharding = {
        "chunk_shape": [chunk_rows, *row_shape],
        "codecs": [*(packed if compressed else [_LITTLE]), _CHECKSUM],
        "index_codecs": [_LITTLE, _CHECKSUM],
    }
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        # Else rows of zeros would leave no trace, and a lost file would read as zeros.
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [0, *row_shape],
            "data_type": buffer.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(buffer.shape)}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
    }
