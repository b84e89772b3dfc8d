"""The GPU kernels, interpreted on CPU, against the formulas written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringrl.attention.block_attention import MASKED_LSE
from ringrl.attention.kernels import gpu, gpu_backward
from ringrl.attention.kernels.gpu_tiles import BLOCK, Tile, choose_tiles
from tests.attention.shard_cases import CASES, SCALE, inputs, reference, reference_gradients, visible
from tests.attention.token_rows import positions

SMALL = Tile(64, 32, 4), Tile(32, 64, 4), Tile(32, 32, 4)


def by_token(*arrays):
    """The kernels' [batch, length, heads, ...] from the formulas' [batch, heads, length, ...], and back."""
    return tuple(x.swapaxes(1, 2) for x in arrays)


@partial(jax.jit, static_argnames=("tiles", "runs"), compiler_options={"xla_backend_optimization_level": 0})
def run(q, k, v, d_out, ids, more_lse, more_delta, *, tiles=SMALL, runs=(2, 2)):
    """Both directions; the log-sum-exp and delta of the backward pass are as if there were other keys, too."""
    q, k, v, d_out = by_token(q, k, v, d_out)
    out, lse = gpu.forward(q, k, v, *ids, scale=SCALE, k_runs=runs[1], tile=tiles[0], interpret=True)
    lse_all, delta = jnp.logaddexp(lse, more_lse), (d_out.astype(jnp.float32) * out).sum(-1) + more_delta
    sizes = {"scale": SCALE, "q_runs": runs[0], "k_runs": runs[1], "dq_tile": tiles[1], "dkv_tile": tiles[2]}
    gradients = gpu_backward.backward(q, d_out, lse_all, delta, k, v, *ids, **sizes, interpret=True)
    return by_token(out, lse, lse_all, delta, *gradients)


def check(ids, *, out_atol=2e-5, gradient_atol=1e-4, elsewhere=0.3, tiles=SMALL, runs=(2, 2), **shapes):
    """`elsewhere`: log-sum-exp of the keys of other shards."""
    q, k, v, d_out = inputs(ids, **shapes)
    more = jnp.float32(elsewhere), jnp.float32(0.7)
    out, lse, lse_all, delta, *gradients = run(q, k, v, d_out, ids, *more, tiles=tiles, runs=runs)
    assert all(x.dtype == jnp.float32 for x in (out, lse, *gradients))
    wanted_out, wanted_lse = reference(q, k, v, ids)
    np.testing.assert_allclose(out, wanted_out, atol=out_atol, rtol=out_atol)
    np.testing.assert_allclose(lse, wanted_lse, atol=out_atol, rtol=out_atol)
    wanted = reference_gradients(q, d_out, lse_all, delta, k, v, ids)
    for name, a, b in zip(("dq", "dk", "dv"), gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=gradient_atol, rtol=gradient_atol, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_against_the_formulas(case):
    check(CASES[case])


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim",
    [(3, 1, 48), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((2, 2, 80), (1, 1, 96), (2, 1, 8)))],
)
def test_heads_that_tiles_pad(heads, kv_heads, head_dim):
    check(CASES["segments"], heads=heads, kv_heads=kv_heads, head_dim=head_dim)


@pytest.mark.parametrize(
    "head_dim, dtype",
    [
        (32, jnp.bfloat16),
        pytest.param(128, jnp.float32, marks=pytest.mark.slow),
        pytest.param(256, jnp.float16, marks=pytest.mark.slow),
    ],
)
def test_the_tiles_that_are_chosen(head_dim, dtype):
    loose = {} if dtype == jnp.float32 else {"out_atol": 2e-2, "gradient_atol": 8e-2}
    tiles = choose_tiles(head_dim, jnp.dtype(dtype).itemsize)
    check(CASES["segments of two shards"], tiles=tiles, head_dim=head_dim, dtype=dtype, **loose)


def test_tiles_divide_blocks():
    for head_dim in (8, 32, 48, 64, 65, 128, 129, 256):
        for tile in (*choose_tiles(head_dim, 2), *choose_tiles(head_dim, 4)):
            for side in tile[:2]:
                assert side in (16, 32, 64, 128) and BLOCK % side == 0


def test_lengths_and_runs_that_differ():
    check((positions((200, 712)), positions((0, 256), (900, 1028), (1200, 1328)), None, None), runs=(1, 4))


@pytest.mark.parametrize("case", ["future", "padding", "segments"])
def test_rows_that_see_nothing(case):
    """Also over all shards: then the log-sum-exp of the backward pass is MASKED_LSE, too."""
    ids = CASES[case]
    q, k, v, d_out = inputs(ids)
    more = jnp.float32(MASKED_LSE), jnp.float32(0)
    out, lse, _, _, dq, dk, dv = run(q, k, v, d_out, ids, *more)
    blind = np.broadcast_to(~np.asarray(visible(*ids)).any(-1), lse.shape)
    assert blind.any()
    assert (np.asarray(out)[blind] == 0).all() and (np.asarray(lse)[blind] == MASKED_LSE).all()
    assert (np.asarray(dq)[blind] == 0).all()
    assert np.isfinite(dk).all() and np.isfinite(dv).all()
    if case == "future":
        assert not np.asarray(dk).any() and not np.asarray(dv).any()


@pytest.mark.parametrize("case", ["future", "half future", "zigzag", "segments of two shards"])
def test_what_nobody_sees_is_not_computed(case):
    ids = CASES[case]
    q, k, v, d_out = inputs(ids)
    mask, side = np.asarray(visible(*ids))[:, 0], 64
    tiles = np.broadcast_to(mask, (2, 256, 256)).reshape(2, 4, side, 4, side).any((2, 4))  # [batch, of q, of k]
    q_seen, k_seen = (np.repeat(tiles.any(axis), side, axis=1)[:, None, :, None] for axis in (2, 1))
    assert not (q_seen.all() and k_seen.all())
    more = jnp.float32(0.3), jnp.float32(0.7)
    sides = (Tile(side, side, 4),) * 3
    wanted = run(q, k, v, d_out, ids, *more, tiles=sides)
    nan = jnp.float32(jnp.nan)
    q, k, v = jnp.where(q_seen, q, nan), jnp.where(k_seen, k, nan), jnp.where(k_seen, v, nan)
    for a, b in zip(run(q, k, v, d_out, ids, *more, tiles=sides), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
