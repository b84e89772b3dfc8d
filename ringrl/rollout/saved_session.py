"""A session in a file: NumPy's npz, without pickles; the arrays of its policy's state, and what it was started with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from ringrl.errors import UserError
from ringrl.files import atomic_file
from ringrl.policy import RolloutSetting, RolloutSpec
from ringrl.readers import RECORD, Count, parse_json
from ringrl.run_records import VersionedRecord

_ORIGIN, _SCHEMA = "origin", 1
_SAVED = "give one that session.save wrote"


@with_config(RECORD)
class SessionAgent(TypedDict):
    """Which agent a session is of."""

    name: str
    checkpoint_step: Count
    sizes: dict[str, Count]
    scales: str


@with_config(RECORD)
class SessionOrigin(VersionedRecord):
    """What a session was started with."""

    agent: SessionAgent
    batched: bool
    setting: RolloutSetting
    spec: RolloutSpec


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


def read_session(path: Path) -> tuple[SessionOrigin, dict[str, np.ndarray]]:
    """The origin and the state of a saved session.

    Raises:
        UserError: there is no such file, it is no saved session, damaged, or of another ringrl.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; {_SAVED}")
    try:
        # A zip, whose checksums are verified; NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = {name: np.asarray(arrays[name]) for name in arrays.files}
        origin = state.pop(_ORIGIN).tobytes()
    except Exception as error:  # of zipfile, zlib and NumPy's parser of headers: of many kinds
        raise UserError(f"{path}: not a saved session, or damaged; {_SAVED}") from error
    schema = parse_json(origin, VersionedRecord, str(path), _SAVED)["schema"]
    if schema != _SCHEMA:
        raise UserError(f"{path}: a session of another ringrl; this one reads schema {_SCHEMA}")
    return parse_json(origin, SessionOrigin, f"{path}: not a session of this ringrl", "start a new one"), state
