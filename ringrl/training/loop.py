"""The training loop."""

from pathlib import Path

import jax

from ringrl.agent import display_name, find_learner, load_agent, looks_across_trials
from ringrl.config import RunConfig
from ringrl.run import RunDirectory
from ringrl.training.checkpoint import Checkpoints, describe, next_batch
from ringrl.training.mesh import make_mesh, place_batch
from ringrl.training.processes import is_first, local_shard
from ringrl.training.state import init_state, make_train_step
from ringrl.training.tracker import Clock, NoTracker, Tracker, check_finite
from ringrl.training.training_data import open_data
from ringrl.training.transitions import train_offline


def train(config: RunConfig, run: Path) -> None:
    """Train `config` in the run directory `run`, from its newest checkpoint if it has one, to `config.training.steps`.

    The run's own config, normalisation statistics and data-set summary are written first, so that evaluation and
    report need nothing else. With many processes (`ringrl.training.processes`) all of them call this; each reads the
    part of every batch that its devices hold, and process 0 alone prints and writes what is not sharded. An agent that
    learns from single transitions has a loop of its own (`ringrl.training.transitions`).

    Raises UserError when the data are no longer those that the run began with, and FloatingPointError, naming the
    step, when the loss or its gradient is not finite.
    """
    directory = RunDirectory(run)
    config = directory.with_own_agent(config)
    if learner := find_learner(config.agent.name):
        return train_offline(config, learner, run)
    t, agent, mesh = config.training, load_agent(config.agent.name), make_mesh(config.mesh)
    held = local_shard(mesh, t.batch, t.row_steps)
    source = open_data(config, agent)
    source.prepare(run)
    graph, state = init_state(config, agent, source.sizes, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    train_step = make_train_step(config, agent, graph, mesh, shardings)
    with Checkpoints(run, t.keep_checkpoints, t.keep_best) as checkpoints:
        start = 0
        if checkpoints.latest_step is not None:
            state, about = checkpoints.restore(state)
            start = next_batch(about, config, run)
        batches = source.batches(start, held)
        first = next(batches)  # settings that do not fit the data are found out here, before there is a run
        if is_first():
            across = looks_across_trials(agent, config, source.card["returns"])
            known = {"display_name": display_name(agent), "across_trials": across}
            directory.write(config, source.card, source.normalizer, **known)
        clock = Clock(config, agent.tokens(config.agent).tokens_per_step, state.params, mesh.size)
        with Tracker(run, t.steps, start, directory.label()) if is_first() else NoTracker() as metrics:
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
    train(RunDirectory(run).config(), run)
