"""Columns of Parquet files as arrays. PyArrow, an optional dependency, is imported when it is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ringrl.errors import UserError, one_line

_FEW_ROWS = 2**20  # that any file may have, however small


def parquet_files(folder: Path) -> list[Path]:
    """The files `chunk-*/file-*.parquet` of a folder, by name. Raises UserError if there is none."""
    found = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not found:
        raise UserError(f"{folder}: has no chunk-*/file-*.parquet; fetch the data set again")
    return found


def read_columns(path: Path, names: Sequence[str], *, optional: Sequence[str] = ()) -> dict[str, Any]:
    """Columns of a file by name: numbers as arrays [rows] or [rows, ...], lists of text as lists.

    Args:
        path: the file.
        names: of columns of numbers, or of lists that are equally long.
        optional: of columns of lists of text, which are left out where they are missing.

    Raises:
        UserError: the file is missing or damaged; a column is missing, or is no such column; PyArrow is not installed.
    """
    pyarrow, parquet = _import_pyarrow()
    if not path.is_file():
        raise UserError(f"{path}: no such file; fetch the data set again")
    try:
        with parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if file.metadata.num_rows > max(_FEW_ROWS, path.stat().st_size):  # a row of numbers takes a byte at least
                raise UserError(
                    f"is said to have {file.metadata.num_rows} rows, more than fit; fetch the data set again"
                )
            wanted = [name for name in (*names, *optional) if name in there]
            # A name with dots is to PyArrow that of a part too, so that more may come than is asked for.
            table = file.read(columns=wanted)
        missing = [name for name in names if name not in there]
        if missing:
            raise UserError(f"has no column {missing[0]}; it has {', '.join(there[:50])}")
        texts = {name: table.column(name).to_pylist() for name in optional if name in there}
        return {name: _to_array(pyarrow, table.column(name), name) for name in names} | texts
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # of Arrow: of many kinds
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error


def _to_array(pyarrow: Any, column: Any, name: str) -> Shaped[np.ndarray, "rows ..."]:
    """Numbers, [rows], or [rows, length] of lists, and so on for lists of lists."""
    values, shape = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type), []
    if isinstance(values, pyarrow.ExtensionArray):
        values = values.storage
    shape.append(len(values))
    types = pyarrow.types
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        if values.null_count:
            raise UserError(f"{name} has rows without a value")
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False)) if len(values) else np.zeros(1, int)
        if len(lengths) > 1:
            raise UserError(f"{name} is of unequal lengths, {lengths[0]} to {lengths[-1]}")
        shape.append(int(lengths[0]))
        values = values.flatten()
    if values.null_count:
        raise UserError(f"{name} has rows without a value")
    if not (types.is_integer(values.type) or types.is_floating(values.type) or types.is_boolean(values.type)):
        raise UserError(f"{name} is {values.type}, no numbers")
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"LeRobot's data sets need PyArrow ({error}): pip install 'ringrl[lerobot]'") from error
    return pyarrow, parquet
