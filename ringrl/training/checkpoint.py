"""Checkpoints through Orbax: asynchronous, sharded, atomic, hashed; the newest and those of lowest loss are kept."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ringrl.config import RunConfig
from ringrl.errors import UserError, unwritable
from ringrl.manifest import DamagedError
from ringrl.run import RunDirectory
from ringrl.training.checkpoint_files import (
    ABOUT,
    FORMAT,
    STATE,
    NewestAndBest,
    SealedPath,
    is_sealed,
    losses_of,
    remove_cut_off,
    set_aside,
    steps_of,
    verify,
)
from ringrl.training.processes import from_first, is_first, wait_for_all

_calls = count()
_log = logging.getLogger(__name__)
_print_unraisable = sys.unraisablehook
# Orbax logs, with a traceback each, what its threads raise, which then is raised as well; and that it only reads.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
# Of the arrays of a checkpoint that cannot be written the first is raised, and asyncio logs each of the others.
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
# Some of the others have not begun to be written.
warnings.filterwarnings("ignore", "coroutine 'async_serialize_from_host.* was never awaited", RuntimeWarning)


class Checkpoints:
    """The `checkpoints/` folder of a run. A context manager: leaving it waits for what is still being written.

    A checkpoint is the state, sharded, and `about`, which says where training was (see `describe`). All processes of
    a run save and restore together. A checkpoint can be restored on any mesh and by any number of processes.

    Where `read_only`, nothing in the folder is touched, so that a run can be evaluated while it trains; otherwise what
    a killed run has left half-written is removed, and a damaged checkpoint that is passed over is renamed.
    """

    def __init__(self, run: Path, keep: int = 2, best: int = 0, *, read_only: bool = False):
        """Keep the newest `keep`, and the `best` of lowest loss."""
        self.folder, self._read_only = RunDirectory(run).checkpoints.resolve(), read_only
        if read_only and not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; train the run first")
        self._losses = losses_of(self.folder) if self.folder.is_dir() else {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=NewestAndBest(keep, best, self._losses),
            enable_async_checkpointing=True,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            temporary_path_class=SealedPath,
            lightweight_initialize=True,  # else a damaged file of one checkpoint would hide all others
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if not read_only and sys.unraisablehook is _print_unraisable:
            sys.unraisablehook = _print_but_late_writes

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()
            if not self._read_only and is_first():
                remove_cut_off(self.folder)

    def wait(self) -> None:
        """Return when what is being written is whole. UserError where it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax's threads raise, now or at the next call, into a UserError."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise errors of many kinds
            raise unwritable(self.folder, error) from error

    @property
    def latest_step(self) -> int | None:
        """Optimiser steps done by the newest complete checkpoint, or None."""
        return max(steps_of(self.folder), default=None)

    def find(self, which: str) -> int:
        """The step that `which` means: `latest`, `best` (the lowest loss of those that are there), or a number.

        Raises UserError when there is no such checkpoint.
        """
        there = steps_of(self.folder)
        if not there:
            raise UserError(f"{self.folder}: no complete checkpoint; train the run first")
        losses = losses_of(self.folder) if which == "best" else {}
        named = {"latest": there[-1], "best": min(losses, key=losses.__getitem__, default=there[-1])}
        step = named[which] if which in named else int(which) if which.isdecimal() else None
        if step not in there:
            raise UserError(f"{self.folder}: no checkpoint {which}; give latest, best, or one of {there}")
        return step

    def save(self, step: int, state: Any, about: dict, loss: float) -> None:
        """Start writing; returns when the state has been copied off the devices.

        Raises:
            UserError: this checkpoint, or the one before, cannot be written.
        """
        self._losses[step] = loss
        items = {STATE: ocp.args.StandardSave(state), ABOUT: ocp.args.JsonSave(about | {"loss": loss})}
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, like: Any, which: str = "latest", *, strict: bool = False) -> tuple[Any, dict]:
        """The state that `which` names (see `find`), laid out as `like` (arrays or ShapeDtypeStructs with shardings),
        and what was said about it.

        Of `latest` a damaged checkpoint is named in the log, and the newest good one is restored, unless `strict`.

        Raises UserError when it is damaged, of another model, or of another version of ringrl.
        """
        passed_over: dict[int, str] = {}
        while True:
            chosen = from_first(f"checkpoint {next(_calls)}", lambda: self._choose(which, strict, passed_over))
            step = chosen["step"]
            try:
                restored = self._read(step, like), chosen["about"]
            except UserError as error:
                # Without hashes only this shows that it may be damaged. Processes cannot agree on it: they fail alone.
                unknown = which == "latest" and not strict and not is_sealed(self.folder / str(step))
                if jax.process_count() > 1 or not (unknown or self._is_gone(step)):
                    raise
                passed_over[step] = str(error)
            else:
                self._set_aside(chosen["damaged"])
                return restored

    def _choose(self, which: str, strict: bool, passed_over: dict[int, str]) -> dict[str, Any]:
        """In process 0: the step to restore, what is said about it, and the steps of damaged ones that are newer."""
        candidates = [self.find(which)]
        if which == "latest" and not strict:
            candidates = steps_of(self.folder)[::-1]
        damaged = {step: reason for step, reason in passed_over.items() if not self._is_gone(step)}
        for step in candidates:
            if step in damaged:
                continue
            try:
                about = verify(self.folder / str(step))
            except DamagedError as error:
                if self._is_gone(step):
                    return self._choose(which, strict, passed_over)
                if strict or which != "latest":
                    raise
                damaged[step] = str(error)
                continue
            for reason in damaged.values():
                _log.warning("%s; checkpoint %d is used", reason, step)
            return {"step": step, "about": about, "damaged": list(damaged)}
        raise UserError(next(iter(damaged.values())))

    def _is_gone(self, step: int) -> bool:
        """Whether a live training has removed it meanwhile."""
        return not (self.folder / str(step)).is_dir()

    def _set_aside(self, damaged: list[int]) -> None:
        if self._read_only or not damaged:
            return
        if is_first():
            for step in damaged:
                _log.warning("%s: renamed to %s", self.folder / str(step), set_aside(self.folder / str(step)).name)
        wait_for_all(f"set aside {next(_calls)}")
        self._manager.reload()

    def _read(self, step: int, like: Any) -> Any:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            items = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)})
            return self._manager.restore(step, args=items)[STATE]
        except Exception as error:  # Orbax and TensorStore raise errors of many kinds
            reason = " ".join(str(error).split())[:200]
            if is_sealed(self.folder / str(step)):  # and compared with its hashes
                mend = "it is of another model: leave out the settings of the agent or model that differ from the run's"
            else:
                mend = "try again, and if it is damaged or of another model, move it away to go on from an earlier one"
            raise UserError(f"{self.folder / str(step)}: cannot be read ({reason}); {mend}") from error


def _print_but_late_writes(unraisable: "sys.UnraisableHookArgs") -> None:
    """`sys.unraisablehook`. Where an array cannot be written, TensorStore reports the others to a loop that is closed
    by then, and has that printed, with a traceback each. The reason itself is raised.
    """
    trace = unraisable.exc_traceback
    late = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    # The outermost frame tells that native code called it, whichever thread that is.
    if not (late and trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"):
        _print_unraisable(unraisable)


def describe(step: int, seed: int, mesh: Mesh) -> dict:
    """What is kept beside a state after `step` steps: all that decides what comes next, and where it was written.

    Every random draw of training is a function of the seed and the batch's index, so these two are the position of
    the loader and the state of the random numbers.
    """
    return {
        "format": FORMAT,
        "step": step,
        "loader": {"seed": seed, "next_batch": step},
        "rng": {"seed": seed},
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "processes": jax.process_count(),
        "versions": {name: version(name) for name in ("ringrl", "jax", "flax", "optax", "orbax-checkpoint")},
    }


def next_batch(about: dict, config: RunConfig, run: Path) -> int:
    """The index of the next batch, as the checkpoint has it. UserError where it was trained with another seed."""
    loader = about["loader"]
    if loader["seed"] != config.seed:
        raise UserError(f"{run}: was trained with seed {loader['seed']}, not {config.seed}; train a new run for that")
    return loader["next_batch"]
