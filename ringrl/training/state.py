"""What training changes: parameters and optimiser state; and the jitted step that changes it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ringrl.agent import Decoder, Widths
from ringrl.attention import compiler_options
from ringrl.config import OptimizerConfig, RunConfig
from ringrl.model.output_heads import make_head
from ringrl.model.transformer import Transformer, make_attend
from ringrl.model_config import rope_base_for
from ringrl.training.learning_rate import make_schedule
from ringrl.training.mesh import parameter_shardings
from ringrl.training.soundness import largest_magnitude


class TrainState(NamedTuple):
    """The pytree that a checkpoint keeps. `params` are the model's nnx.Param arrays as nested dicts, float32."""

    step: jax.Array  # int32 [], optimiser steps done
    params: dict
    optimizer: optax.OptState


def set_rope_base(config: RunConfig, decoder: Decoder | None) -> RunConfig:
    """`config` with `model.rope_base` as a number: if it is None, that for the tokens of a training row.

    Where there is no decoder, `config` as it is.
    """
    if decoder is None or config.model.rope_base is not None:
        return config
    base = rope_base_for(config.training.row_steps * decoder.tokens.tokens_per_step)
    return config.model_copy(update={"model": config.model.model_copy(update={"rope_base": base})})


def build_model(config: RunConfig, decoder: Decoder, sizes: Widths) -> Transformer:
    """A freshly initialised model, float32 parameters; `sizes` are the observation's and the action's widths."""
    head = make_head(config.agent.head, config.agent.bins)
    model = set_rope_base(config, decoder).model
    return Transformer(model, decoder.tokens, head, sizes, rngs=nnx.Rngs(config.seed))


def split_model(model: Transformer) -> tuple[nnx.GraphDef, dict]:
    """The model's structure, and its parameters as plain nested dicts (what checkpoints and optimisers take)."""
    graph, params = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(params)


def merge_model(graph: nnx.GraphDef, params: dict) -> Transformer:
    """The inverse of `split_model`."""
    return nnx.merge(graph, nnx.State(params))


def make_optimizer(config: OptimizerConfig, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind a clip of the global norm, and its learning rate by step; vectors (norms, biases) do not decay."""
    schedule = make_schedule(config, steps)
    decayed = partial(jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key in ("kernel", "embedding"))
    adam = optax.adamw(schedule, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam), schedule


def abstract_state(config: RunConfig, decoder: Decoder, sizes: Widths, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """The model's structure, and the state's shapes, dtypes and shardings as ShapeDtypeStructs; nothing is computed."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: build_model(config, decoder, sizes)), nnx.Param)
    shapes = jax.eval_shape(lambda: _create(config, decoder, sizes))
    placed = parameter_shardings(shapes, mesh)
    return graph, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)


def init_state(config: RunConfig, decoder: Decoder, sizes: Widths, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """The state at step 0, created in its shards: no device ever stores more than its own."""
    graph, abstract = abstract_state(config, decoder, sizes, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return graph, jax.jit(lambda: _create(config, decoder, sizes), out_shardings=shardings)()


def _create(config: RunConfig, decoder: Decoder, sizes: Widths) -> TrainState:
    optimizer, _ = make_optimizer(config.optimizer, config.training.steps)
    _, params = split_model(build_model(config, decoder, sizes))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_loss(config: RunConfig, decoder: Decoder, graph: nnx.GraphDef, mesh: Mesh) -> Callable:
    """(params, batch) -> the weighted sum of all steps' losses, float32 []; computed as the mesh says."""
    ring, stripe = config.mesh, (config.mesh.stripe or 1) * decoder.tokens.tokens_per_step
    attend = make_attend(mesh, ring.ring_layout, config.model.block, ring.exchange, stripe)

    def loss_sum(params: dict, batch: dict[str, jax.Array]) -> jax.Array:
        model = merge_model(graph, params)
        loss = partial(decoder.loss, model.head)
        return jnp.sum(model.losses(batch, loss, attend, mesh) * batch["weight"])

    return loss_sum


def make_train_step(
    config: RunConfig, decoder: Decoder, graph: nnx.GraphDef, mesh: Mesh, shardings: object
) -> Callable:
    """The jitted (state, batch) -> (state, metrics); donates the state. Metrics are float32 scalars."""
    optimizer, schedule = make_optimizer(config.optimizer, config.training.steps)
    loss_sum = make_loss(config, decoder, graph, mesh)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        weight = jnp.maximum(jnp.sum(batch["weight"]), 1.0)
        total, gradients = _accumulate(jax.value_and_grad(loss_sum), state.params, batch, config.optimizer.accumulation)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power (bias correction)
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
            learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = {"loss": total / weight, "grad_norm": optax.tree.norm(gradients), "learning_rate": learning_rate}
        # The square of a gradient whose norm is finite is finite too, so the moments need no look of their own.
        metrics["weight_max"] = largest_magnitude(params)
        metrics["padding"] = jnp.mean(batch["segment_ids"] == 0)  # share of positions that are padding
        return state._replace(step=state.step + 1, params=params, optimizer=optimizer_state), metrics

    options = compiler_options(mesh.devices.flat[0].platform)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)


def _accumulate(grad: Callable, params: dict, batch: dict[str, jax.Array], parts: int) -> tuple[jax.Array, dict]:
    """Sum of losses and of their gradients over `parts` micro-batches, one after the other.

    Rows are dealt out by turns (row i to micro-batch i mod parts), so that every device keeps its own rows.
    """
    if parts == 1:
        return grad(params, batch)
    micro = {name: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    add = lambda total, part: (jax.tree.map(jnp.add, total, grad(params, part)), None)  # noqa: E731
    return jax.lax.scan(add, zero, micro)[0]
