"""The files of `checkpoints/`: which checkpoints there are, whether one is what was written, and the loss of each.

A checkpoint is a folder named by its step. It is sealed (`ringrl.manifest`) before it gets that name, so that one with
the name is whole; of a copy this need not be true, nor after a fault of the disk. Those of an earlier ringrl, of format
2, have no hashes.
"""

import asyncio
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.path import atomicity

from ringrl.errors import UserError
from ringrl.manifest import MANIFEST, DamagedError, check, require, seal

FORMAT, UNSEALED_FORMAT = 3, 2
STATE, ABOUT = "state", "about"
_DAMAGED = ".damaged"
_GIVE_UP_S, _UNSEEN = 10, 20  # the latter looks are a second


class SealedPath(atomicity.AtomicRenameTemporaryPath):
    """Orbax's temporary folder of a checkpoint, which is sealed before it is renamed."""

    async def finalize(self) -> None:
        """Complete the folder, seal it, and give it its name; in process 0."""
        final = Path(self.get_final())
        if not final.name.isdecimal():  # a part of a checkpoint
            return await super().finalize()
        # Orbax writes the last files and renames in one go: to a name that still counts as temporary.
        complete = final.with_name(f"{Path(self.get()).name}-complete")
        self._final_path = type(self._final_path)(complete)
        await super().finalize()
        self._final_path = type(self._final_path)(final)
        await asyncio.to_thread(seal, complete)
        os.rename(complete, final)


@dataclass(frozen=True)
class NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints, and those of the lowest loss.

    Attributes:
        newest: how many.
        best: how many.
        losses: by step; a checkpoint that is not in it has lost its loss.
    """

    newest: int
    best: int
    losses: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each is kept."""
        steps = sorted(each.step for each in checkpoints)
        ranked = sorted(steps, key=lambda step: self.losses.get(step, math.inf))
        kept = {*steps[max(0, len(steps) - self.newest) :], *ranked[: self.best]}
        return [each.step in kept for each in checkpoints]


def remove_cut_off(folder: Path) -> None:
    """Remove what a full disk has cut off: the disk needs the room.

    Of the arrays of a checkpoint the first failure is raised, while TensorStore's threads may still write the others
    and so make their folder anew. Therefore a removed folder is looked for again, until it has stayed away.
    """
    give_up, unseen = time.monotonic() + _GIVE_UP_S, 0
    while (found := list(folder.glob("*.orbax-checkpoint-tmp*"))) or 0 < unseen < _UNSEEN:
        for cut_off in found:
            shutil.rmtree(cut_off, ignore_errors=True)
        unseen = 1 if found else unseen + 1
        if time.monotonic() > give_up:
            return
        time.sleep(0.05)


def steps_of(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def losses_of(folder: Path) -> dict[int, float]:
    """The training loss of each checkpoint, by its step, of those that can say it."""
    found = {step: _loss_of(folder / str(step)) for step in steps_of(folder)}
    return {step: loss for step, loss in found.items() if loss is not None}


def verify(checkpoint: Path) -> dict[str, Any]:
    """Compare a checkpoint with its hashes; of format 2 a line in the log says that it has none.

    Returns:
        What is said about it.

    Raises:
        DamagedError: it is not whole, or not what was written.
        UserError: it is of another format.
    """
    sealed = check(checkpoint, lambda name: name.startswith((f"{STATE}/", f"{ABOUT}/")))  # what is read of it
    try:
        about = _read_json(checkpoint / ABOUT / "metadata")
    except FileNotFoundError:
        raise DamagedError(
            f"{checkpoint}: has no {ABOUT}/: a copy that was cut off, or a checkpoint of an earlier version of ringrl"
        ) from None
    except ValueError:
        raise DamagedError(f"{checkpoint}: its {ABOUT}/metadata is damaged") from None
    version = about.get("format")
    if version not in (UNSEALED_FORMAT, FORMAT):
        raise UserError(f"{checkpoint}: checkpoint format {version}, this ringrl reads {FORMAT}")
    if not sealed:
        require(checkpoint, promised=version == FORMAT)
    return about


def is_sealed(checkpoint: Path) -> bool:
    """Whether it has hashes."""
    return (checkpoint / MANIFEST).is_file()


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that another of its step can be written; returns the new path."""
    aside, number = checkpoint.with_name(f"{checkpoint.name}{_DAMAGED}"), 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{checkpoint.name}{_DAMAGED}-{number}")
    return checkpoint.rename(aside)


def _loss_of(checkpoint: Path) -> float | None:
    """As `about` has it or, in format 2, a file of its own."""
    for name in (f"{ABOUT}/metadata", "metrics/metrics"):
        try:
            loss = _read_json(checkpoint / name).get("loss")
        except (OSError, ValueError):
            continue
        if isinstance(loss, int | float) and math.isfinite(loss):
            return float(loss)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError where it is none, FileNotFoundError where there is no file."""
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
