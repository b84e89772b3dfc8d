"""Problems of attention to a KV cache, what they must give, and an agent step on a ring for the real compilers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.attention import MASKED_LSE, append_tokens, cached_attention, empty_cache
from ringrl.attention.kernels import xla_cache
from ringrl.attention.kv_cache import KVCache, Stored, store
from ringrl.attention.local_step import TokenIndex

SCALE, LAYERS, LAYER = 0.3, 3, 1
QUICK = {"xla_llvm_disable_expensive_passes": True}
plain = jax.jit(partial(xla_cache.attend, scale=SCALE), compiler_options=QUICK)


def inputs(batch=3, queries=4, heads=2, kv_heads=2, dim=128, slots=512, dtype=jnp.float32, cache=None, seed=0):
    """(q, stored, layer, q_tokens, tokens, filled): rows of different lengths, of several segments with padding."""
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.standard_normal((batch, queries, heads, dim)), dtype)
    k, v = (jnp.asarray(rng.standard_normal((LAYERS * batch, slots, kv_heads, dim)), dtype) for _ in range(2))
    shape = (LAYERS, batch, slots, -1), (LAYERS, batch, kv_heads, slots)
    flat = store(k, v, cache or dtype)
    scales = (None if x is None else x.reshape(shape[1]) for x in flat[2:])
    stored = Stored(flat.k.reshape(shape[0]), flat.v.reshape(shape[0]), *scales)
    segments = np.sort(rng.integers(1, 4, (batch, slots)), axis=1)
    segments[:, ::7] = 0
    positions = np.tile(np.arange(slots), (batch, 1))
    filled = np.resize([slots - 130, 5, slots, 0], batch)
    q_segments = rng.integers(1, 4, (batch, queries))
    q_segments[0, 0] = 0
    q_positions = rng.integers(slots // 2, slots, (batch, queries))
    q_positions, q_segments, positions, segments, filled = (
        jnp.asarray(x, jnp.int32) for x in (q_positions, q_segments, positions, segments, filled)
    )
    return q, stored, jnp.int32(LAYER), TokenIndex(q_positions, q_segments), TokenIndex(positions, segments), filled


def reference(q, stored, layer, q_tokens, tokens, filled):
    """Every formula written out, in float64."""
    (batch, _, heads, dim), slots = q.shape, stored.k.shape[2]
    kv_heads = stored.k.shape[3] // dim

    def whole(x, scale):
        x = np.asarray(x[layer].astype(jnp.float32), np.float64).reshape(batch, slots, kv_heads, dim)
        x = x if scale is None else x * np.moveaxis(np.asarray(scale[layer], np.float64), 1, 2)[..., None]
        return np.repeat(x, heads // kv_heads, axis=2)

    k, v = whole(stored.k, stored.k_scale), whole(stored.v, stored.v_scale)
    scores = np.einsum("bqhd,bkhd->bqhk", np.asarray(q.astype(jnp.float32), np.float64), k) * SCALE
    mask = (np.asarray(tokens.segments)[:, None] == np.asarray(q_tokens.segments)[..., None]) & (
        np.asarray(tokens.positions)[:, None] <= np.asarray(q_tokens.positions)[..., None]
    )
    mask &= (np.asarray(q_tokens.segments) != 0)[..., None] & (np.arange(slots) < np.asarray(filled)[:, None, None])
    scores = np.where(mask[:, :, None], scores, -np.inf)
    seen = mask.any(-1)[..., None]
    highest = np.where(seen, scores.max(-1), 0.0)
    weights = np.exp(scores - highest[..., None])
    total = np.where(seen, weights.sum(-1), 1.0)
    out = np.einsum("bqhk,bkhd->bqhd", weights / total[..., None], v)
    return out, np.where(seen, highest + np.log(total), MASKED_LSE)


def check_attend(attend, atol=2e-5, **shapes):
    """`attend` against every formula written out, and against XLA's kernel; what sees nothing is exactly 0."""
    arguments = inputs(**shapes)
    out, lse = attend(*arguments)
    assert out.dtype == lse.dtype == jnp.float32
    for name, other in (("written out", reference(*arguments)), ("xla", plain(*arguments))):
        np.testing.assert_allclose(out, other[0], atol=atol, rtol=atol, err_msg=name)
        np.testing.assert_allclose(lse, other[1], atol=atol, rtol=atol, err_msg=name)
    blind = np.asarray(reference(*arguments)[1]) == MASKED_LSE
    assert blind.any() and (np.asarray(lse)[blind] == MASKED_LSE).all() and (np.asarray(out)[blind] == 0).all()


def step(layers, q, k, v, cache, positions, segments):
    """All layers of an agent step, as the model takes them: each appends and attends."""
    cache, slots = append_tokens(cache, positions, segments, "seq")

    def layer(carry, index):
        x, stored = carry
        here = cache._replace(stored=stored)
        ids = {"positions": positions, "segment_ids": segments, "axis_name": "seq"}
        out, stored = cached_attention(x, k, v, here, index, slots, **ids)
        return (out, stored), None

    (out, stored), _ = jax.lax.scan(layer, (q, cache.stored), jnp.arange(layers, dtype=jnp.int32))
    return out, cache._replace(stored=stored)


def lower_step(devices, dtype, cache_dtype, dim, heads, kv_heads, queries, *, local_slots=65536, layers=4, batch=3):
    """An agent step on a ring of these devices, under check_vma, which is given the cache."""
    mesh = Mesh(np.array(devices), ("seq",), axis_types=(AxisType.Auto,))
    slots = local_slots * len(devices)
    tokens, scales = P(None, None, "seq"), P(None, None, None, "seq")
    scale = scales if cache_dtype == jnp.int8 else None
    specs = KVCache(Stored(tokens, tokens, scale, scale), P(None, "seq"), P(None, "seq"), P())
    shapes = jax.eval_shape(
        lambda: empty_cache(layers, batch, slots, kv_heads, dim, cache_dtype, stations=len(devices))
    )

    def argument(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    def new(n):
        return argument(jax.ShapeDtypeStruct((batch, queries, n, dim), dtype), P())

    ids = argument(jax.ShapeDtypeStruct((batch, queries), jnp.int32), P())
    local = jax.shard_map(
        partial(step, layers),
        mesh=mesh,
        in_specs=(P(), P(), P(), specs, P(), P()),
        out_specs=(P(), specs),
        check_vma=True,
    )
    return jax.jit(local, donate_argnums=3).lower(
        new(heads), new(kv_heads), new(kv_heads), jax.tree.map(argument, shapes, specs), ids, ids
    )


def check_in_place(compiled, cache_dtype, dim, kv_heads, *, local_slots=65536, layers=4, batch=3):
    """The cache is written in place, and nothing as large as a layer is made."""
    layer_bytes = batch * local_slots * kv_heads * dim * jnp.dtype(cache_dtype).itemsize
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * layers * layer_bytes
    assert memory.temp_size_in_bytes < layer_bytes
    return compiled.as_text()
