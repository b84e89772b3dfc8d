"""What the kernels of Pallas are compared with: the formulas written out, and ids of shards that meet."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from ringrl.attention.block_attention import MASKED_LSE, NEVER_SEEN, SEES_ALL, SEES_NONE
from tests.attention.token_rows import constant, positions, segments

SCALE = 0.3


def visible(q_positions, k_positions, q_segments, k_segments):
    mask = q_positions[:, :, None] >= k_positions[:, None, :]
    if q_segments is not None:
        same = (q_segments[:, :, None] == k_segments[:, None, :]) & (q_segments != 0)[:, :, None]
        mask = jnp.broadcast_to(mask, same.shape) & same
    return mask[:, None]


def reference(q, k, v, ids):
    """(out, lse) in float32."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(jnp.float32) for x in (q, jnp.repeat(k, group, 1), jnp.repeat(v, group, 1)))
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision="highest") * SCALE
    mask = jnp.broadcast_to(visible(*ids), scores.shape)
    seen = mask.any(-1)
    highest = jnp.where(seen, jnp.where(mask, scores, -jnp.inf).max(-1), 0.0)
    p = jnp.where(mask, jnp.exp(scores - highest[..., None]), 0.0)
    total = jnp.where(seen, p.sum(-1), 1.0)
    out = jnp.einsum("bhqk,bhkd->bhqd", p / total[..., None], v, precision="highest")
    return out, jnp.where(seen, highest + jnp.log(total), MASKED_LSE)


def reference_gradients(q, d_out, lse, delta, k, v, ids):
    """dq, dk and dv in float32, given any log-sum-exp and delta."""
    group = q.shape[1] // k.shape[1]
    arrays = q, d_out, jnp.repeat(k, group, 1), jnp.repeat(v, group, 1)
    q, d_out, k, v = (x.astype(jnp.float32) for x in arrays)
    einsum = partial(jnp.einsum, precision="highest")
    scores = einsum("bhqd,bhkd->bhqk", q, k) * SCALE
    p = jnp.where(visible(*ids), jnp.exp(scores - lse[..., None]), 0.0)
    ds = p * (einsum("bhqd,bhkd->bhqk", d_out, v) - delta[..., None])
    dk, dv = einsum("bhqk,bhqd->bhkd", ds, q) * SCALE, einsum("bhqk,bhqd->bhkd", p, d_out)
    shape = k.shape[0], -1, group, *k.shape[2:]
    return einsum("bhqk,bhkd->bhqd", ds, k) * SCALE, dk.reshape(shape).sum(2), dv.reshape(shape).sum(2)


HERE = positions((0, 256))
LEFT = segments([(1, 100), (2, 60), (0, 96)], [(0, 128), (3, 128)])
RIGHT = segments([(2, 40), (0, 20), (1, 196)], [(3, 256)])
CASES = {  # positions of queries and keys, segments of queries and keys
    "diagonal": (HERE, HERE, None, None),
    "past": (positions((256, 512)), HERE, None, None),
    "future": (HERE, positions((256, 512)), None, None),
    "half future": (HERE, positions((128, 384)), None, None),
    "striped": (positions((1, 1024, 4)), positions((3, 1024, 4)), None, None),
    "zigzag": (positions((128, 256), (768, 896)), positions((0, 128), (896, 1024)), None, None),
    "zigzag diagonal": (positions((128, 256), (768, 896)),) * 2 + (None, None),
    "non-causal": (constant(SEES_ALL), positions((256, 512)), None, None),
    "padding": (
        jnp.concatenate([HERE[:, :200], constant(SEES_NONE, 56)], 1),
        jnp.concatenate([HERE[:, :150], constant(NEVER_SEEN, 106)], 1),
        None,
        None,
    ),
    "positions by row": (jnp.concatenate([HERE, HERE + 64]), jnp.concatenate([HERE + 32, HERE[:, ::-1]]), None, None),
    "segments": (HERE, HERE, LEFT, LEFT),
    "segments of two shards": (HERE + 100, HERE, LEFT, RIGHT),
    "segments, non-causal": (constant(SEES_ALL), HERE, LEFT, RIGHT),
    "negative segments": (HERE, HERE, segments(*[[(-7, 128), (-2, 128)]] * 2), segments(*[[(-7, 256)]] * 2)),
}


def inputs(ids, heads=4, kv_heads=2, head_dim=32, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, h, x.shape[1], head_dim) for h, x in ((heads, ids[0]), (kv_heads, ids[1]), (kv_heads, ids[1]))]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in (*shapes, shapes[0]))


def check(run, ids, *, out_atol=2e-5, gradient_atol=1e-4, elsewhere=0.3, **shapes):
    """Compare a kernel, forward and backward, with the formulas.

    Args:
        run: (q, k, v, d_out, ids, more_lse, more_delta) -> out, lse, the log-sum-exp of all shards, delta, dq, dk, dv.
        ids: of `CASES`, or like them.
        out_atol: of the output and log-sum-exp.
        gradient_atol: of the gradients.
        elsewhere: log-sum-exp of the keys of other shards.
        shapes: of `inputs`.
    """
    q, k, v, d_out = inputs(ids, **shapes)
    out, lse, lse_all, delta, *gradients = run(q, k, v, d_out, ids, jnp.float32(elsewhere), jnp.float32(0.7))
    assert all(x.dtype == jnp.float32 for x in (out, lse, *gradients))
    wanted_out, wanted_lse = reference(q, k, v, ids)
    np.testing.assert_allclose(out, wanted_out, atol=out_atol, rtol=out_atol)
    np.testing.assert_allclose(lse, wanted_lse, atol=out_atol, rtol=out_atol)
    wanted = reference_gradients(q, d_out, lse_all, delta, k, v, ids)
    for name, a, b in zip(("dq", "dk", "dv"), gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=gradient_atol, rtol=gradient_atol, err_msg=name)


def check_blind_rows(run, case):
    """Rows that see nothing, here or in any shard: their log-sum-exp is then MASKED_LSE in the backward pass, too."""
    ids = CASES[case]
    q, k, v, d_out = inputs(ids)
    out, lse, _, _, dq, dk, dv = run(q, k, v, d_out, ids, jnp.float32(MASKED_LSE), jnp.float32(0))
    blind = np.broadcast_to(~np.asarray(visible(*ids)).any(-1), lse.shape)
    assert blind.any()
    assert (np.asarray(out)[blind] == 0).all() and (np.asarray(lse)[blind] == MASKED_LSE).all()
    assert (np.asarray(dq)[blind] == 0).all()
    assert np.isfinite(dk).all() and np.isfinite(dv).all()
    if case == "future":
        assert not np.asarray(dk).any() and not np.asarray(dv).any()


def check_unseen_is_not_computed(run, case, side):
    """NaN in blocks of `side` tokens that nothing sees, or that see nothing, changes no result."""
    ids = CASES[case]
    q, k, v, d_out = inputs(ids)
    mask, blocks = np.asarray(visible(*ids))[:, 0], 256 // side
    seen = (
        np.broadcast_to(mask, (2, 256, 256)).reshape(2, blocks, side, blocks, side).any((2, 4))
    )  # [batch, of q, of k]
    q_seen, k_seen = (np.repeat(seen.any(axis), side, axis=1)[:, None, :, None] for axis in (2, 1))
    assert not (q_seen.all() and k_seen.all())
    more, nan = (jnp.float32(0.3), jnp.float32(0.7)), jnp.float32(jnp.nan)
    wanted = run(q, k, v, d_out, ids, *more)
    q, k, v = jnp.where(q_seen, q, nan), jnp.where(k_seen, k, nan), jnp.where(k_seen, v, nan)
    for a, b in zip(run(q, k, v, d_out, ids, *more), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
