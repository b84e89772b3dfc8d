"""The training loop, one for all agents; how each learns is its `ringrl.agent.Trainer`."""

from contextlib import nullcontext
from pathlib import Path

from ringrl.agent import make_agent
from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.training.checkpoint import Checkpoints, describe, next_batch
from ringrl.training.data_notes import noted, training_notes
from ringrl.training.processes import is_first, wait_for_all
from ringrl.training.soundness import UpdateCheck
from ringrl.training.state import set_rope_base
from ringrl.training.tracker import NoTracker, Tracker
from ringrl.training.trained_model import refuse_earlier_tokens


def refuse_existing(run: Path) -> None:
    """Raise UserError where there is a run."""
    if RunDirectory(run).exists:
        raise UserError(f"{run}: there is a run already; continue it with --resume {run}, or name another with --out")


def run_training(config: RunConfig, run: Path, *, new: bool = False, strict: bool = False) -> None:
    """Train `config` in the run directory `run`, from its newest checkpoint if it has one, to `config.training.steps`.

    The run's own config, normalisation statistics and data-set summary are written first, so that evaluation and
    report need nothing else. With many processes (`ringrl.training.processes`) all of them call this; each reads the
    shard of every batch that is its devices', and process 0 alone prints and writes what is not sharded.

    A damaged newest checkpoint is named, and the newest good one used; with `strict` it is an error.

    Raises UserError when the data or the tokens are no longer those that the run began with, while another process
    trains in `run`, and if `new`, where there is a run; and FloatingPointError when the loss, its gradient or what the
    update made of the weights cannot be (`ringrl.training.soundness`), one step later at most and before it is saved.
    """
    with RunDirectory(run).training_alone() if is_first() else nullcontext():
        if new and is_first():  # only now that no other can make one meanwhile
            refuse_existing(run)
        _train_alone(config, run, strict)


def _train_alone(config: RunConfig, run: Path, strict: bool) -> None:
    """`run_training`, by the only run of processes that trains here."""
    directory = RunDirectory(run)
    config = directory.with_own_agent(config)
    t, agent = config.training, make_agent(config.agent)
    config = set_rope_base(config, agent.decoder)
    if directory.exists and agent.decoder is not None:
        refuse_earlier_tokens(agent.decoder, directory.tokens, run)
    trainer = agent.make_trainer(config)
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
        with Tracker(run, t.steps, start, directory.label()) if is_first() else NoTracker() as metrics:
            for step, state, values in updates:
                metrics.advance(step)
                log, save = (step % every == 0 or step == t.steps for every in (t.log_every, t.checkpoint_every))
                numbers = check.passed(step, values, now=log or save)
                if log:
                    metrics.log(step, numbers | trainer.rates(step))
                if save:
                    about = describe(step, config.seed, trainer.mesh)
                    checkpoints.save(step, trainer.pack(state), about, numbers["loss"])
                    check.checkpoint = step
