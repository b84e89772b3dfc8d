"""A cache in layers of random queries, keys and values, and what attention to it must give, in float64 and by hand."""

from functools import cache as remember
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from ringrl.attention import append_tokens, cached_attention, empty_cache, slots_for
from ringrl.attention.block_attention import MASKED_LSE
from ringrl.attention.kernels import native
from ringrl.attention.kv_cache import KVCache, Stored
from tests.attention.meshes import ring_mesh

KERNELS = ["xla", "native"] if native.available() else ["xla"]
"""Every kernel of this platform."""

LAYERS = 2


class Sizes(NamedTuple):
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8


class Call(NamedTuple):
    """Tokens of one call: arrays have the layers first, positions and segments are [batch, tokens]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


def random_call(rng, sizes, positions, segments, dtype=np.float32):
    positions, segments = (np.asarray(x, np.int32) for x in (positions, segments))
    shapes = [(LAYERS, *positions.shape, h, sizes.dim) for h in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    return Call(*(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes), positions, segments)


def new_cache(sizes, capacity, call, *, stations=1, dtype=jnp.float32):
    slots = slots_for(capacity, call, stations) * stations
    return empty_cache(LAYERS, sizes.batch, slots, sizes.kv_heads, sizes.dim, dtype, stations=stations)


def partitions(quantised, prompt=False):
    """Of a cache over the ring of `ring_mesh`."""
    tokens, scale = P(None, None, "seq"), P(None, None, None, "seq") if quantised else None
    return KVCache(Stored(tokens, tokens, scale, scale), P(None, "seq"), P(None, "seq"), P())


def append(kernel, axis_name, call, cache, prompt):
    """The outputs of all layers, which are scanned as a model's are, and the cache with the call's tokens."""
    cache, slots = append_tokens(cache, call.positions, call.segments, axis_name)

    def layer(stored, inputs):
        index, q, k, v = inputs
        here = cache._replace(stored=stored)
        tokens = {"positions": call.positions, "segment_ids": call.segments, "axis_name": axis_name}
        out, stored = cached_attention(q, k, v, here, index, slots, prompt=prompt, kernel=kernel, **tokens)
        return stored, out

    indices = jnp.arange(LAYERS, dtype=jnp.int32)
    stored, out = lax.scan(layer, cache.stored, (indices, call.q, call.k, call.v))
    return out, cache._replace(stored=stored)


@remember
def compiled(kernel, stations=1, quantised=False, with_prompt=False, check_vma=False):
    """append(call, cache, prompt), compiled for one device or a ring; the cache is given away."""
    if stations == 1:
        return jax.jit(partial(append, kernel, None), donate_argnums=1)
    specs = partitions(quantised)
    local = jax.shard_map(
        partial(append, kernel, "seq"),
        mesh=ring_mesh(stations),
        in_specs=(P(), specs, specs if with_prompt else None),
        out_specs=(P(), specs),
        check_vma=check_vma,
    )
    return jax.jit(local, donate_argnums=1)


def attention(q, k, v, positions, segments, k_positions, k_segments):
    """One row: q [queries, heads, dim], k and v [keys, kv_heads, dim]; output and log-sum-exp in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    sees = (segments[:, None] == k_segments) & (k_segments != 0) & (k_positions <= positions[:, None])
    scores = np.where(sees[:, None], np.einsum("qhd,khd->qhk", q, k) / np.sqrt(q.shape[-1]), -np.inf)
    highest = np.maximum(scores.max(-1, initial=-np.inf, keepdims=True), MASKED_LSE)
    weights = np.exp(scores - highest)
    total = weights.sum(-1)
    out = np.einsum("qhk,khd->qhd", weights, v) / np.where(total > 0, total, 1)[..., None]
    return out, np.where(total > 0, highest[..., 0] + np.log(np.where(total > 0, total, 1)), MASKED_LSE)


class History:
    """Tokens that rows have kept, call after call."""

    def __init__(self, sizes):
        self.rows = [[] for _ in range(sizes.batch)]  # (k, v, position, segment), k and v [layers, kv_heads, dim]

    def outputs(self, call, shared=None):
        """What the call must give, [layers, batch, tokens, heads, dim]; `shared`: another history, of a prompt."""
        out = np.zeros(call.q.shape)
        for b, row in enumerate(self.rows):
            kept = max(np.flatnonzero(call.segments[b]), default=-1) + 1
            row += [(call.k[:, b, t], call.v[:, b, t], call.positions[b, t], call.segments[b, t]) for t in range(kept)]
            seen = row + (shared.rows[0] if shared else [])
            if not seen:
                continue
            k, v, positions, segments = (np.array(x) for x in zip(*seen, strict=True))
            for layer in range(LAYERS):
                tokens = call.positions[b], call.segments[b], positions, segments
                out[layer, b] = attention(call.q[layer, b], k[:, layer], v[:, layer], *tokens)[0]
        return out
