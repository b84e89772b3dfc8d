"""A run that ended before its first checkpoint: there is nothing to go on with, so its name is free for a new one."""

import logging
import shutil

from ringrl.manifest import MANIFEST
from ringrl.run import RunDirectory
from ringrl.training.checkpoint_files import steps_of

_log = logging.getLogger(__name__)


def check_free(run: RunDirectory) -> None:
    """Raise UserError where there is a run that has kept a step, or files that are no run's."""
    if not _kept_nothing(run):
        run.check_new()


def remove_begun(run: RunDirectory) -> None:
    """Remove what a run without a checkpoint has left, config.yaml last: until then it is known to be such a run.

    The caller keeps other processes from training in it.
    """
    if not _kept_nothing(run):
        return
    _log.warning("%s: a training ended there before its first checkpoint; it begins anew", run.path)
    (run.path / MANIFEST).unlink(missing_ok=True)
    for folder in (run.checkpoints, run.tensorboard, run.wandb):
        shutil.rmtree(folder, ignore_errors=True)
    described = (run.record_file, run.agent_file, run.normalizer_file, run.dataset_file)
    for file in (run.metrics_file, *described, run.config_file):
        file.unlink(missing_ok=True)


def _kept_nothing(run: RunDirectory) -> bool:
    made_of_steps = (run.evaluation, run.export, run.finished_file)  # whose checkpoints somebody may have removed
    kept = run.checkpoints.is_dir() and steps_of(run.checkpoints)
    return run.exists and not kept and not any(path.exists() for path in made_of_steps)
