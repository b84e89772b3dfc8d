"""A trained model's compiled calls in rollouts, made once and shared by all policies of it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from ringrl.model.cached_decoder import CachedDecoder
from ringrl.model.tokens import StepArrays
from ringrl.model.transformer import Transformer, make_attend


class ModelCalls:
    """What policies ask of a model.

    Attributes:
        model: the transformer.
        decoder: its calls on a KV cache.
    """

    def __init__(self, model: Transformer, mesh: Mesh | None = None, cache_dtype: str | None = None):
        """`mesh` and `cache_dtype` are `CachedDecoder`'s."""
        self.model, self.decoder = model, CachedDecoder(model, mesh, cache_dtype)
        graph, self._params = nnx.split(model)
        attend = make_attend(None, "contiguous", model.config.block)

        def window(params: Any, steps: StepArrays, at: Array) -> Array:
            raw = nnx.merge(graph, params)(steps, attend)
            return jnp.take_along_axis(raw, at[:, None, None, None], axis=1)[:, 0]

        self._window, self._act = jax.jit(window), jax.jit(partial(_act, model.head))

    def window(self, steps: Mapping[str, Any], at: Int32[np.ndarray, " envs"]) -> Float[Array, "envs action outputs"]:
        """Raw outputs at step `at` of each row of `steps`, from the whole row up to there."""
        return self._window(self._params, steps, at)

    def act(
        self, raw: Float[Array, "envs action outputs"], draw: tuple[int, int, int] | None
    ) -> Float32[np.ndarray, "envs action"]:
        """Actions: the head's mode, or draws by (seed, index of the first environment, step of the rollout).

        An environment's draws depend on its index and on none of the others.
        """
        return np.asarray(self._act(raw, None if draw is None else np.array(draw, np.uint32)))


def _act(head: Any, raw: Array, draw: Array | None) -> Array:
    if draw is None:
        return head.act(raw, None)
    seed, first, step = draw
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(len(raw), dtype=jnp.uint32))
    return jax.vmap(lambda each, one: head.act(each[None], one)[0])(raw, keys)
