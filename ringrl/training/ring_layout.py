"""Which layout a training's ring has: counted on the rows that it trains on, where the config leaves it open."""

from typing import cast

import jax
import jax.numpy as jnp

from ringrl.agent import Agent, Trainer
from ringrl.attention.balance import RingLayout, choose_layout
from ringrl.attention.kernels import make_step
from ringrl.config import RunConfig
from ringrl.training.processes import from_first, is_first
from ringrl.training.sequence_trainer import BatchData


def make_trainer(agent: Agent, config: RunConfig) -> tuple[RunConfig, Trainer]:
    """The agent's trainer, and `config` with the layout of its ring decided.

    Where `mesh.layout` is auto, or striped without a `mesh.stripe`, process 0 counts on the first rows which layout
    shares out their attention best, and says so. Raises what the agent's `make_trainer` does.
    """
    mesh = config.mesh
    left_open = mesh.layout == "auto" or (mesh.layout == "striped" and mesh.stripe is None)
    if agent.decoder is None or mesh.seq == 1 or not left_open:
        return config, agent.make_trainer(config)
    chosen = from_first("layout", lambda: _choose(agent, config))
    config = config.model_copy(update={"mesh": mesh.model_copy(update=chosen)})
    return config, agent.make_trainer(config)


def _choose(agent: Agent, config: RunConfig) -> dict[str, str | int | None]:
    """The layout and the agent steps of a stripe."""
    assert agent.decoder is not None
    data, tokens = cast(BatchData, agent.make_trainer(config).data), agent.decoder.tokens.tokens_per_step
    mesh, training = config.mesh, config.training
    rows = training.batch // (mesh.data * mesh.fsdp * config.optimizer.accumulation)  # on one ring at once
    segments = data.segments(rows).repeat(tokens, axis=1)
    found = choose_layout(segments, mesh.seq, unit=tokens, blocks=_blocks(config, *segments.shape))
    allowed = [each for each in found if mesh.layout == "auto" or each.layout == "striped"]
    if is_first():
        print(_describe(allowed, tokens))
    best = allowed[0]
    return {"layout": best.layout, "stripe": best.stripe // tokens if best.layout == "striped" else None}


def _describe(found: list[RingLayout], tokens: int) -> str:
    """One line: what is taken, and beside it the best of the other kind."""
    named = {each.layout: each for each in reversed(found)}
    stripes = f" in stripes of {found[0].stripe // tokens} agent steps" if found[0].layout == "striped" else ""
    others = [f", {each.layout} {each.cost:.2f}" for name, each in named.items() if name != found[0].layout]
    return (
        f"ring: {found[0].layout}{stripes}, {found[0].cost:.2f} times an even share of what tokens see{''.join(others)}"
    )


def _blocks(config: RunConfig, rows: int, tokens: int) -> tuple[int, int]:
    """Queries and keys of a block of a device's local step; nothing is computed."""
    model, mesh = config.model, config.mesh
    shape = (rows, tokens // mesh.seq, model.heads // (mesh.heads * mesh.tensor), model.width // model.heads)
    found = []

    def look(q: jax.Array) -> jax.Array:
        step = make_step(q, q, block_q=model.block, block_k=model.block)
        found.append(step.blocks)
        return q

    jax.eval_shape(look, jax.ShapeDtypeStruct(shape, jnp.dtype(model.compute_dtype)))
    return found[0]
