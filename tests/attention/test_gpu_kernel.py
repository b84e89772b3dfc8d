"""The GPU kernels, interpreted on CPU, against the formulas written out."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from ringrl.attention.kernels import gpu, gpu_backward
from ringrl.attention.kernels.gpu_tiles import BLOCK, Tile, choose_tiles
from tests.attention import shard_cases
from tests.attention.shard_cases import CASES, SCALE
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


def check(ids, *, tiles=SMALL, runs=(2, 2), **options):
    shard_cases.check(partial(run, tiles=tiles, runs=runs), ids, **options)


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
    shard_cases.check_blind_rows(run, case)


@pytest.mark.parametrize("case", ["future", "half future", "zigzag", "segments of two shards"])
def test_what_nobody_sees_is_not_computed(case):
    shard_cases.check_unseen_is_not_computed(partial(run, tiles=(Tile(64, 64, 4),) * 3), case, 64)
