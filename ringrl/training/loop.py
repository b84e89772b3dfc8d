"""The training loop."""

from pathlib import Path

import jax

from ringrl.agent import load_agent
from ringrl.config import RunConfig, dump_config, load_config
from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.training.checkpoint import Checkpoints, describe
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.metrics import Clock, Metrics, Silence, check_finite
from ringrl.training.processes import held_here, is_first
from ringrl.training.source import Source, open_source
from ringrl.training.state import init_state, make_train_step


def train(config: RunConfig, run: Path) -> None:
    """Train `config` in the run directory `run`, from its newest checkpoint if it has one, to `config.training.steps`.

    The run's own config, normalisation statistics and data-set summary are written first, so that evaluation and
    report need nothing else. With many processes (`ringrl.training.processes`) all of them call this; each reads the
    part of every batch that its devices hold, and process 0 alone prints and writes what is not sharded.

    Raises UserError when the data are no longer those that the run began with, and FloatingPointError, naming the
    step, when the loss or its gradient is not finite.
    """
    t, agent, mesh = config.training, load_agent(config.agent.name), make_mesh(config.mesh)
    held = held_here(mesh, t.batch, t.row_steps)
    source = open_source(config, agent)
    source.prepare(run)
    graph, state = init_state(config, agent, source.sizes, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    train_step = make_train_step(config, agent, graph, mesh, shardings)
    with Checkpoints(run, t.keep_checkpoints, t.keep_best) as checkpoints:
        start = 0
        if checkpoints.latest_step is not None:
            state, about = checkpoints.restore(state)
            start = _position(about, config, run)
        batches = source.batches(start, held)
        first = next(batches)  # settings that do not fit the data are found out here, before there is a run
        if is_first():
            _write_run(config, run, source)
        clock = Clock(config, agent.tokens(config.agent).tokens_per_step, state.params, mesh.size)
        with Metrics(run, t.steps, start, config.agent.name) if is_first() else Silence() as metrics:
            values: dict[str, jax.Array] = {}
            for step in range(start + 1, t.steps + 1):
                with clock.waiting(values):
                    batch = place_batch(first if step == start + 1 else next(batches), mesh, held)
                state, values = train_step(state, batch)
                metrics.advance()
                log, save = (step % every == 0 or step == t.steps for every in (t.log_every, t.checkpoint_every))
                if log or save:
                    check_finite(step, values)
                if log:
                    metrics.log(step, {name: float(x) for name, x in values.items()} | clock.lap(step, step - start))
                if save:
                    checkpoints.save(step, state, describe(step, config.seed, mesh), float(values["loss"]))


def resume(run: Path) -> None:
    """Go on with the run in `run`, under the configuration that it was started with."""
    train(find_run(run), run)


def find_run(run: Path) -> RunConfig:
    """The configuration that the run in `run` was started with. Raises UserError where there is no run."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run}: not a run directory (it has no config.yaml); pass the folder that `ringrl train` made")
    return load_config(run / "config.yaml")


def _position(about: dict, config: RunConfig, run: Path) -> int:
    """The index of the next batch, as the checkpoint has it."""
    loader = about["loader"]
    if loader["seed"] != config.seed:
        raise UserError(f"{run}: was trained with seed {loader['seed']}, not {config.seed}; name a new run with --out")
    return loader["next_batch"]


def _write_run(config: RunConfig, run: Path, source: Source) -> None:
    """What a run directory is known by; config.yaml comes last, for it says that the others are there."""
    run.mkdir(parents=True, exist_ok=True)
    source.write(run)
    write_text(run / "config.yaml", dump_config(config))
