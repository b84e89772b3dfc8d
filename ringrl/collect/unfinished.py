"""A folder that is being collected: `OUT.unfinished`, beside the folder that it becomes.

Beside it is `OUT.unfinished.npz`, of what the collector has learnt and drawn after so many episodes. It is written when
the collection is interrupted, and every minute. What a killed process collected after it is collected again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from ringrl.errors import UserError, unwritable
from ringrl.files import atomic_file, check_replaceable, replace_folder
from ringrl.locks import exclusive
from ringrl.manifest import seal
from ringrl.readers import RECORD, Count, parse_json

BUFFER = "buffer"
_ABOUT = "about"
_EVERY = 60.0  # seconds
_AGAIN = "remove it to collect anew"

State = tuple[dict[str, Any], dict[str, np.ndarray]]
"""What a collector has learnt and drawn: plain values, and arrays by name."""


@with_config(RECORD)
class UnfinishedRecord(TypedDict):
    """What is said about the state."""

    settings: dict[str, Any]
    returns: list[float]
    steps: Count
    collector: dict[str, Any]


class Unfinished:
    """The folder, by the process that collects.

    Attributes:
        folder: where.
        returns: of every episode that is kept.
        steps: environment steps of all of them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """`settings`: all that decides what is collected, as plain values. See `load`."""
        self.folder, self._settings = folder, dict(settings)
        self._state = folder.with_name(f"{folder.name}.npz")
        self.returns: list[float] = []
        self.steps, self._saved = 0, time.monotonic()

    @property
    def is_kept(self) -> bool:
        """Whether there is a state to go on from."""
        return self._state.exists()

    def load(self) -> State | None:
        """The collector's state after the episodes that are kept; None where there are none.

        Raises:
            UserError: it was collected under other settings, or the state is damaged.
        """
        state = None
        if self.is_kept:
            record, arrays = _read(self._state)
            before = record["settings"]
            differ = [
                name for name, value in self._settings.items() if json.dumps(before.get(name)) != json.dumps(value)
            ]
            if differ:
                raise UserError(
                    f"{self.folder}: an interrupted collection of other settings ({', '.join(differ)}); give those to "
                    f"go on with it, or {_AGAIN}"
                )
            self.returns, self.steps = record["returns"], record["steps"]
            state = record["collector"], arrays
        for path in (self.folder / BUFFER).glob("*"):
            index = path.name.partition("_")[2].partition("_")[0]
            if not index.isdecimal() or int(index) >= len(
                self.returns
            ):  # of an episode after the state, or half a file
                path.unlink()
        return state

    def add(self, episode_return: float, steps: int, state: Callable[[], State], now: bool = False) -> None:
        """Count an episode that is written; keep the state if it is time, or `now`. UserError: it cannot be written."""
        self.returns.append(episode_return)
        self.steps += steps
        if now or time.monotonic() > self._saved + _EVERY:
            collector, arrays = state()
            record = {"settings": self._settings, "returns": self.returns, "steps": self.steps, "collector": collector}
            about = np.frombuffer(json.dumps(record).encode(), np.uint8)
            try:
                with atomic_file(self._state) as temporary, temporary.open("wb") as file:
                    np.savez(file, allow_pickle=False, **{_ABOUT: about}, **arrays)
            except OSError as error:
                raise unwritable(self._state, error) from error
            self._saved = time.monotonic()

    def close(self, marker: str, about: Mapping[str, Any]) -> None:
        """All is collected: write what is said about it, and the hashes."""
        (self.folder / marker).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        seal(self.folder)

    def forget(self) -> None:
        """Remove the state: the folder has its name."""
        self._state.unlink(missing_ok=True)


@contextmanager
def unfinished_folder(out: Path, marker: str, settings: Mapping[str, Any], overwrite: bool) -> Iterator[Unfinished]:
    """The folder that becomes `out` at the end; after an exception it stays, if there is a state to go on from.

    Args:
        out: the folder to be; the folders above it are made.
        marker: a file that every folder of this kind contains. Only such a folder is ever replaced.
        settings: as for `Unfinished`.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: as `ringrl.files.atomic_folder`.
    """
    folder = out.with_name(f"{out.name}.unfinished")
    with exclusive(out.with_name(f".{out.name}.lock"), of=out):
        check_replaceable(out, marker, overwrite)
        if not folder.exists():  # killed when it had just got its name
            Unfinished(folder, {}).forget()
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
        aside = out.with_name(f"{out.name}.unfinished-old")
        if aside.exists() and not out.exists():  # killed between two renames
            aside.rename(out)
        kept = Unfinished(folder, settings)
        try:
            yield kept
            check_replaceable(out, marker, overwrite)
            replace_folder(out, folder, aside=aside)
            kept.forget()
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            if not kept.is_kept:
                shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> tuple[UnfinishedRecord, dict[str, np.ndarray]]:
    try:
        # A zip, whose checksums are verified; NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
        about = arrays.pop(_ABOUT).tobytes()
    except Exception as error:  # of zipfile, zlib and NumPy's parser of headers: of many kinds
        raise UserError(f"{path}: damaged; {_AGAIN}") from error
    return parse_json(about, UnfinishedRecord, str(path), _AGAIN), arrays
