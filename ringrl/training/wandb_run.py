"""Weights & Biases: the package `wandb`, imported only where a config names it (`ringrl[wandb]`)."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.run import RunDirectory
from ringrl.trackers import TrainingStatus


class WandbRun:
    """The tracker `wandb` (`ringrl.trackers.Tracker`): a run of W&B in the folder `wandb/` of the run directory.

    Whether, where and as whom it uploads is W&B's own matter: WANDB_MODE=offline, WANDB_PROJECT (here by default
    `ringrl`), WANDB_ENTITY and the other variables that it reads. A run that goes on is the same run there, by an id
    that is kept in `wandb/ringrl_id`; W&B ignores lines of steps that it has already.
    """

    def __init__(self):
        """Import W&B. Raises UserError where it is not installed."""
        try:
            import wandb
        except ImportError as error:
            wandb, reason = None, error
        else:
            reason = None
        if not hasattr(wandb, "init"):  # a folder `wandb` of the working folder can be imported, and is empty
            raise UserError(
                "training.trackers: wandb: is not installed; pip install 'ringrl[wandb]', or leave it out"
            ) from reason
        self._wandb: Any = wandb

    def begin(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin the run there, or go on with it."""
        own_id = RunDirectory(run).wandb / "ringrl_id"
        if not (step and own_id.is_file()):
            own_id.parent.mkdir(exist_ok=True)
            write_text(own_id, secrets.token_hex(4))
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ringrl"),
            name=run.name,
            id=own_id.read_text(encoding="utf-8"),
            resume="allow" if step else None,
            dir=str(run),
            config=dict(config),
            settings=self._wandb.Settings(console="off"),  # the progress line is not recorded
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show it a line."""
        self._run.log(dict(values), step=step)

    def end(self, status: TrainingStatus) -> None:
        """Wait until W&B has it all. What did not finish counts as failed there; `status` in its summary says how."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)
