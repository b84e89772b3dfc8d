"""Where a training begins: which configuration, in which run directory."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringrl.agent import make_agent
from ringrl.config import AnyConfig, RunConfig, load_config, parse_config
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.run import RunDirectory
from ringrl.trackers import Tracker
from ringrl.training.begun import check_free
from ringrl.training.checkpoint_files import steps_of
from ringrl.training.learning_rate import describe_last, go_on
from ringrl.training.loop import run_training
from ringrl.training.processes import from_first
from ringrl.trust import remember_modules, require_trusted_modules, trusting

# What a run keeps to its end: what its steps are, and the shapes of its parameters.
_SHAPE = ("layers", "width", "heads", "kv_heads", "hidden", "activation", "max_steps", "max_trials")
_POSITIONS = ("rope_base", "position_encoding", "trial_encoding")
_UNNAMED = ("seed", "data.store", "label", "training.trackers")  # settings that a run's default name leaves out
_FIXED = (
    ("data", "action_repeat"),
    *(("agent", field) for field in ("fused", "head", "bins")),
    ("model", "preset"),
    ("optimizer", "legs"),
    *(("model", field) for field in _SHAPE + _POSITIONS),
)


def train(
    config: AnyConfig | None = None,
    *overrides: str,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    strict: bool = False,
    trust: bool = False,
    trackers: Sequence[Tracker] = (),
) -> Path:
    """Train an agent in a run directory, or continue a run from its newest checkpoint.

    Args:
        config: the name of a shipped config (`ringrl ls`), the path of a YAML file, its content as plain values, or a
            `RunConfig`.
        overrides: settings as `"a.b=c"`, for example `"training.steps=100"`; of a run that is continued, changes of its
            configuration, for example `"data.store=NEW"` where its store was moved or converted.
        out: the run directory, which must be new; default `runs/NAME-seedN`, with what `overrides` change in between,
            as `runs/results_at-steps=100-seed0`. One in which no checkpoint was kept counts as new.
        resume: a run directory to continue, under its own configuration; then `config` is None.
        strict: refuse to continue where the newest checkpoint is damaged, instead of going back to the newest good one.
        trust: run the agents that `resume` and `agent.teacher` bring along, and the modules that the run's task and
            trackers name, whoever wrote them; otherwise there is a question, or an error, where they are neither
            shipped nor known to this user (`ringrl.trust`).
        trackers: objects that are shown every logged step, beside those that `training.trackers` names
            (`ringrl.trackers.Tracker`).

    Returns:
        The run directory. Where many processes train together, all of them call this and return the same.

    Raises:
        UserError: a wrong configuration, missing data, a run that exists already or, for `resume`, does not exist, or
            a change of what a run keeps: its seed, agent, model and data; while another process trains in it; an
            agent or a module that is not trusted; and a tracker that cannot begin.
        FloatingPointError: the loss or its gradient is not finite; the message names the step.

    Example:
        >>> import ringrl
        >>> small = ("model.width=16", "training.steps=2", "training.row_steps=12", "training.batch=2")
        >>> data = ("data.store=stores/cartpole", "data.task=cartpole_swingup", "data.action_repeat=4")
        >>> run = ringrl.train("demo_bc", *data, *small, out="runs/small")
        behavior_cloning: step 2/2, loss ...
        >>> (run / "config.yaml").exists()
        True
    """
    if resume is not None and config is not None:
        raise UserError("--resume RUN goes on under the run's own config: give it no CONFIG, only a.b=c")
    if resume is not None and out is not None:
        raise UserError(f"--resume goes on in {resume}: give it no --out")
    if resume is None and config is None:
        raise UserError("train needs a CONFIG (see `ringrl ls`) or --resume RUN")
    with trusting(trust):
        values, run = from_first("config", lambda: _settings(config, overrides, out, resume))
        run_training(parse_config(values, run), Path(run), new=resume is None, strict=strict, trackers=trackers)
    return Path(run)


def _settings(config: Any, overrides: tuple[str, ...], out: Any, resume: Any) -> tuple[dict[str, Any], str]:
    """The configuration, as plain values, and the run directory; read by process 0 for all."""
    if resume is not None:
        own = RunDirectory(resume).config()
        continued = _changed(own, overrides, str(resume))
        before, now = set(own.training.trackers), continued.training.trackers
        require_trusted_modules(name for name in now if name in before)
        remember_modules(name for name in now if name not in before)
        return continued.model_dump(mode="json"), str(user_path(resume))
    loaded = load_config(config, overrides)
    name = Path(config).stem if isinstance(config, str | os.PathLike) else Path(loaded.agent.name).stem
    run = user_path(out) if out is not None else Path("runs") / _name(name, overrides, loaded.seed)
    check_free(RunDirectory(run))
    remember_modules(loaded.training.trackers)
    return loaded.model_dump(mode="json"), str(run)


def _name(config: str, overrides: tuple[str, ...], seed: int) -> str:
    """The default name of a run, such as `results_at-steps=100-seed0`: its config, what was changed in it, its seed."""
    changes = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in _UNNAMED:
            changes.append(re.sub(r"[^\w.+=-]+", "_", f"{key.rpartition('.')[2]}={value}")[:40])
    return "-".join([config, *changes, f"seed{seed}"])


def _changed(own: RunConfig, overrides: tuple[str, ...], run: str) -> RunConfig:
    """A run's configuration with some settings changed; its seed, agent and data are compared when it trains.

    Raises:
        UserError: a wrong setting, one of `_FIXED`, or one that `ringrl.training.learning_rate.go_on` refuses.
    """
    config = load_config(own, overrides)
    for section, field in _FIXED:
        before, after = (getattr(getattr(each, section), field) for each in (own, config))
        if before != after:
            raise UserError(
                f"{run}: began with {section}.{field}={before}, not {after}; leave it out, or train a new run"
            )
    folder = RunDirectory(Path(run)).checkpoints
    done = max(steps_of(folder), default=0) if folder.is_dir() else 0
    went_on = go_on(own, config, done, [override.partition("=")[0] for override in overrides], run)
    if make_agent(config.agent).decoder is None:  # its learning rates are the agent's own, and constant
        return config
    if went_on is not config:
        print(f"{run}: {describe_last(went_on.optimizer)}")
    return went_on
