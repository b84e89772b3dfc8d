"""The training loop, one for all agents; how each learns is its `ringrl.agent.Trainer`."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import jax

from ringrl.agent import Trainer, make_agent
from ringrl.config import RunConfig
from ringrl.ending import Stopped
from ringrl.run import RunDirectory
from ringrl.trackers import Tracker
from ringrl.training.begun import check_free, remove_begun
from ringrl.training.checkpoint import Checkpoints, describe, next_batch
from ringrl.training.data_notes import noted, training_notes
from ringrl.training.processes import is_first, wait_for_all
from ringrl.training.ring_layout import make_trainer
from ringrl.training.soundness import UpdateCheck
from ringrl.training.state import set_rope_base
from ringrl.training.stopping import stopping_point
from ringrl.training.tracker import MetricsLog, NoMetricsLog
from ringrl.training.tracker_group import TrackerGroup
from ringrl.training.trained_model import refuse_earlier_tokens


def run_training(
    config: RunConfig, run: Path, *, new: bool = False, strict: bool = False, trackers: Sequence[Tracker] = ()
) -> None:
    """Train `config` in the run directory `run`, from its newest checkpoint if it has one, to `config.training.steps`.

    The run's own config, normalisation statistics and data-set summary are written first, so that evaluation and
    report need nothing else. With many processes (`ringrl.training.processes`) all of them call this; each reads the
    shard of every batch that is its devices', and process 0 alone prints and writes what is not sharded.

    A damaged newest checkpoint is named, and the newest good one used; with `strict` it is an error. Process 0 alone
    shows its logged steps to `trackers` and to those of the config (`ringrl.trackers`).

    Raises UserError when the data or the tokens are no longer those that the run began with, while another process
    trains in `run`, when a tracker cannot begin, and if `new`, where there is a run; and FloatingPointError when the
    loss, its gradient or what the update made of the weights cannot be (`ringrl.training.soundness`), one step later at
    most and before it is saved.
    """
    with RunDirectory(run).training_alone() if is_first() else nullcontext():
        if new and is_first():  # only now that no other can make one meanwhile
            check_free(RunDirectory(run))
            remove_begun(RunDirectory(run))
        _train_alone(config, run, strict, trackers)


def _train_alone(config: RunConfig, run: Path, strict: bool, own_trackers: Sequence[Tracker]) -> None:
    """`run_training`, by the only run of processes that trains here."""
    directory = RunDirectory(run)
    config = directory.with_own_agent(config)
    t, agent = config.training, make_agent(config.agent)
    trackers = TrackerGroup(t.trackers, own_trackers) if is_first() else TrackerGroup()
    config = set_rope_base(config, agent.decoder)
    if directory.exists and agent.decoder is not None:
        refuse_earlier_tokens(agent.decoder, directory.tokens, run)
    config, trainer = make_trainer(agent, config)
    trainer.data.prepare(run)
    wait_for_all("data")  # where one has none, nothing is made
    state, start = trainer.init(), 0
    with Checkpoints(run, t.keep_checkpoints, t.keep_best) as checkpoints:
        if checkpoints.latest_step is not None:
            packed, about = checkpoints.restore(trainer.pack(state), strict=strict)
            state, start = trainer.unpack(packed, state), next_batch(about, config, run)
        updates = trainer.updates(state, start)  # settings that do not fit the data are found before there is a run
        wait_for_all("ready to train")
        if is_first():
            notes = noted(training_notes(config, agent, trainer.data))
            directory.write(config, trainer.data.card | {"notes": notes}, trainer.data.normalizer, agent.description)
        check = UpdateCheck(trainer.explain, trainer.step_sizes, start or None)
        log = MetricsLog(run, t.steps, start, directory.label()) if is_first() else NoMetricsLog()
        with trackers.watching(directory, start), log:
            steps = _Steps(config, run, trainer, checkpoints, (log, trackers), check)
            for update in islice(updates, 1):  # a signal before it ends all at once: there is nothing to lose
                steps.take(*update)
            with stopping_point() as point:
                for step, state, values in updates:
                    steps.take(step, state, values)
                    signal = point.reached(step)
                    if signal:
                        steps.stop(signal)
            checkpoints.wait()  # before a tracker ends, which may take long or never come to an end


class _Steps:
    """What is logged and kept of a training's steps."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        trainer: Trainer,
        checkpoints: Checkpoints,
        logs: tuple[MetricsLog | NoMetricsLog, TrackerGroup],
        check: UpdateCheck,
    ):
        self._config, self._run, self._trainer = config, run, trainer
        self._checkpoints, self._check = checkpoints, check
        self._metrics, self._trackers = logs
        self._step, self._state, self._values, self._saved = 0, None, {}, 0

    def take(self, step: int, state: Any, values: dict[str, jax.Array]) -> None:
        """Count a step that has begun; log it and keep it, if it is one of those."""
        t = self._config.training
        self._step, self._state, self._values = step, state, values
        self._metrics.advance(step)
        log, save = (step % every == 0 or step == t.steps for every in (t.log_every, t.checkpoint_every))
        log |= save and self._config.data.validation_share > 0
        numbers = self._check.passed(step, values, now=log or save)
        rates = self._trainer.rates(step) if log else {}
        if save:
            numbers |= self._trainer.validate(state)
        if log:
            self._metrics.log(step, numbers | rates)
            self._trackers.log(step, numbers | rates)
        if save:
            self._save(numbers)

    def stop(self, signal: int) -> NoReturn:
        """Keep the last step, and raise `Stopped`, which is for process 0 to say."""
        if self._saved != self._step:
            numbers = self._check.passed(self._step, self._values, now=True)
            self._save(numbers | self._trainer.validate(self._state))
        self._checkpoints.wait()
        where = f"stopped after step {self._step} of {self._config.training.steps}, which is kept"
        message = f"{self._run}: {where}; go on with `ringrl train --resume {self._run}`"
        raise Stopped(signal, message if is_first() else "")

    def _save(self, numbers: dict[str, float]) -> None:
        about = describe(self._step, self._config.seed, self._trainer.mesh)
        loss = numbers.get("validation_loss", numbers["loss"])
        self._checkpoints.save(self._step, self._trainer.pack(self._state), about, loss)
        self._saved = self._check.checkpoint = self._step
