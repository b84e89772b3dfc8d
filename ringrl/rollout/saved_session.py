"""A session in a file: NumPy's npz, without pickles; the arrays of its policy's state, and what it was started with."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ringrl.errors import UserError
from ringrl.files import atomic_file

_ORIGIN, _SCHEMA = "origin", 1


def write_session(path: Path, origin: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
    """Write the file, complete or not at all.

    Args:
        path: of the file, which may exist.
        origin: of plain values, as JSON takes them.
        state: arrays by name.

    Raises:
        UserError: the file cannot be written.
    """
    about = np.frombuffer(json.dumps({"schema": _SCHEMA, **origin}).encode(), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_ORIGIN: about, **state})
    except OSError as error:
        raise UserError(f"{path}: the session cannot be saved: {error.strerror or error}") from error


def read_session(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The origin and the state of a saved session.

    Raises:
        UserError: there is no such file, it is no saved session, damaged, or of a newer ringrl.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give one that session.save wrote")
    try:
        # A zip, whose checksums are verified; NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
        origin = json.loads(state.pop(_ORIGIN).tobytes().decode())
    except (ValueError, KeyError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a saved session, or damaged; give one that session.save wrote") from error
    if not isinstance(origin, dict) or origin.get("schema") != _SCHEMA:
        raise UserError(f"{path}: a session of another ringrl; this one reads schema {_SCHEMA}")
    return origin, state
