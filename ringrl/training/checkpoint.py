"""Checkpoints through Orbax: asynchronous, sharded, atomic; the newest few are kept, and those of the lowest loss."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.run import RunDirectory

FORMAT = 2
STATE, ABOUT = "state", "about"


class Checkpoints:
    """The `checkpoints/` folder of a run. A context manager: leaving it waits for what is still being written.

    A checkpoint is the state, sharded, and `about`, which says where training was (see `describe`). All processes of
    a run save and restore together. A checkpoint can be restored on any mesh and by any number of processes.

    Where `read_only`, nothing in the folder is touched, so that a run can be evaluated while it trains; otherwise what
    a killed run has left half-written is removed.
    """

    def __init__(self, run: Path, keep: int = 2, best: int = 0, *, read_only: bool = False):
        """Keep the newest `keep`, and the `best` of lowest loss."""
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if best:
            policies.append(checkpoint_managers.BestN(get_metric_fn=_loss, reverse=True, n=best))
        options = ocp.CheckpointManagerOptions(
            best_fn=_loss,
            best_mode="min",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            enable_async_checkpointing=True,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self.folder = RunDirectory(run).checkpoints.resolve()
        if read_only and not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; train the run first")
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Optimiser steps done by the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def find(self, which: str) -> int:
        """The step that `which` means: `latest`, `best` (the lowest loss of those that are there), or a number.

        Raises UserError when there is no such checkpoint.
        """
        there = sorted(self._manager.all_steps())
        if not there:
            raise UserError(f"{self.folder}: no complete checkpoint; train the run first")
        named = {"latest": there[-1], "best": self._manager.best_step()}
        step = named[which] if which in named else int(which) if which.isdecimal() else None
        if step not in there:
            raise UserError(f"{self.folder}: no checkpoint {which}; give latest, best, or one of {there}")
        return step

    def save(self, step: int, state: Any, about: dict, loss: float) -> None:
        """Start writing; returns when the state has been copied off the devices."""
        items = {STATE: ocp.args.StandardSave(state), ABOUT: ocp.args.JsonSave(about)}
        self._manager.save(step, args=ocp.args.Composite(**items), metrics={"loss": loss})

    def restore(self, like: Any, which: str = "latest") -> tuple[Any, dict]:
        """The state that `which` names (see `find`), laid out as `like` (arrays or ShapeDtypeStructs with shardings),
        and what was said about it.

        Raises UserError when it is damaged, of another model, or of another version of ringrl.
        """
        step = self.find(which)
        folder = self.folder / str(step)
        if not (folder / ABOUT).is_dir():
            raise UserError(f"{folder}: not a checkpoint of this version of ringrl; evaluate or train with the old one")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {STATE: ocp.args.StandardRestore(target), ABOUT: ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            state, about = restored[STATE], restored[ABOUT]
        except Exception as error:  # Orbax and TensorStore raise errors of many kinds
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: cannot be read ({reason}); try again, and if it is damaged or of another model, "
                "move that folder away to continue from an earlier one"
            ) from error
        if about.get("format") != FORMAT:
            raise UserError(f"{folder}: checkpoint format {about.get('format')}, this ringrl reads {FORMAT}")
        return state, about


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
        raise UserError(f"{run}: was trained with seed {loader['seed']}, not {config.seed}; name a new run with --out")
    return loader["next_batch"]


def _loss(metrics: Any) -> float:
    return metrics["loss"]
