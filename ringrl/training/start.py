"""Where a training begins: which configuration, in which run directory."""

import os
from pathlib import Path
from typing import Any

from ringrl.config import AnyConfig, load_config, parse_config
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.training.loop import run_training
from ringrl.training.processes import from_first


def train(
    config: AnyConfig | None = None,
    *overrides: str,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Path:
    """Train an agent in a run directory, or continue a run from its newest checkpoint.

    Args:
        config: the name of a shipped config (`ringrl ls`), the path of a YAML file, its content as plain values, or a
            `RunConfig`.
        overrides: settings as `"a.b=c"`, for example `"training.steps=100"`.
        out: the run directory, which must be new; default `runs/NAME-seedN`.
        resume: a run directory to continue, under its own configuration; then there is no `config`.

    Returns:
        The run directory. Where many processes train together, all of them call this and return the same.

    Raises:
        UserError: a wrong configuration, missing data, a run that exists already or, for `resume`, does not exist.
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
    if resume is not None and (config is not None or overrides):
        raise UserError("--resume RUN goes on under the run's own config: give it no CONFIG and no overrides")
    if resume is None and config is None:
        raise UserError("train needs a CONFIG (see `ringrl ls`) or --resume RUN")
    values, run = from_first("config", lambda: _settings(config, overrides, out, resume))
    run_training(parse_config(values, run), Path(run))
    return Path(run)


def _settings(config: Any, overrides: tuple[str, ...], out: Any, resume: Any) -> tuple[dict[str, Any], str]:
    """The configuration, as plain values, and the run directory; read by process 0 for all."""
    if resume is not None:
        return RunDirectory(Path(resume)).config().model_dump(mode="json"), str(resume)
    loaded = load_config(config, overrides)
    name = Path(config).stem if isinstance(config, str | os.PathLike) else Path(loaded.agent.name).stem
    run = Path(out) if out is not None else Path("runs") / f"{name}-seed{loaded.seed}"
    if RunDirectory(run).exists:
        raise UserError(f"{run}: there is a run already; continue it with --resume {run}, or name another with --out")
    return loaded.model_dump(mode="json"), str(run)
