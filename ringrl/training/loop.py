"""The training loop."""

from pathlib import Path

import jax

from ringrl.agent import load_agent
from ringrl.config import RunConfig, dump_config, load_config
from ringrl.errors import UserError
from ringrl.files import write_text
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.metrics import Clock, Metrics, check_finite
from ringrl.training.source import Source, open_source
from ringrl.training.state import init_state, make_train_step


def train(config: RunConfig, run: Path) -> None:
    """Train `config` in the run directory `run`, from its newest checkpoint if it has one, to `config.training.steps`.

    The run's own config, normalisation statistics and data-set summary are written first, so that evaluation and
    report need nothing else. Raises UserError when the data are no longer those that the run began with, and
    FloatingPointError, naming the step, when the loss or its gradient is not finite.
    """
    t, agent, mesh = config.training, load_agent(config.agent.name), make_mesh(config.mesh)
    source = open_source(config, agent)
    source.prepare(run)
    graph, state = init_state(config, agent, source.sizes, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    train_step = make_train_step(config, agent, graph, mesh, shardings)
    with Checkpoints(run, t.keep_checkpoints) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state)
        start = int(state.step)
        batches = source.batches(start, (0, 1), (0, 1))
        first = next(batches)  # settings that do not fit the data are found out here, before there is a run
        _write_run(config, run, source)
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        clock = Clock(config, agent.tokens(config.agent).tokens_per_step, parameters, mesh.size)
        with Metrics(run, t.steps, start, config.agent.name) as metrics:
            for step in range(start + 1, t.steps + 1):
                with clock.waiting():
                    batch = place_batch(first if step == start + 1 else next(batches), mesh)
                state, values = train_step(state, batch)
                metrics.advance()
                log, save = (step % every == 0 or step == t.steps for every in (t.log_every, t.checkpoint_every))
                if log or save:
                    check_finite(step, values)
                if log:
                    metrics.log(step, {name: float(x) for name, x in values.items()} | clock.lap(step, step - start))
                if save:
                    checkpoints.save(step, state)


def resume(run: Path) -> None:
    """Go on with the run in `run`, under the configuration that it was started with."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run}: not a run directory (it has no config.yaml); pass the folder that `ringrl train` made")
    train(load_config(run / "config.yaml"), run)


def _write_run(config: RunConfig, run: Path, source: Source) -> None:
    """What a run directory is known by; config.yaml comes last, for it says that the others are there."""
    run.mkdir(parents=True, exist_ok=True)
    source.write(run)
    write_text(run / "config.yaml", dump_config(config))
