"""The TPU kernels: interpreted on CPU against the formulas written out, and compiled by the real TPU compiler."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.attention.kernels import tpu, tpu_backward
from ringrl.attention.kernels.tpu_tiles import choose_blocks
from ringrl.planner.topology import find_devices
from tests.attention import shard_cases
from tests.attention.shard_cases import CASES, SCALE, inputs, reference
from tests.attention.token_rows import positions
from tests.planner.compilers import needs_libtpu, optimised


@partial(jax.jit, static_argnames=("blocks", "interpret"), compiler_options={"xla_llvm_disable_expensive_passes": True})
def run(q, k, v, d_out, ids, more_lse, more_delta, *, blocks=(128, 128), interpret=True):
    """Both directions; the log-sum-exp and delta of the backward pass are as if there were other keys, too."""
    options = dict(scale=SCALE, block_q=blocks[0], block_k=blocks[1], interpret=interpret)
    out, lse = tpu.forward(q, k, v, *ids, **options)
    lse_all, delta = jnp.logaddexp(lse, more_lse), (d_out.astype(jnp.float32) * out).sum(-1) + more_delta
    return out, lse, lse_all, delta, *tpu_backward.backward(q, d_out, lse_all, delta, k, v, *ids, **options)


def check(ids, *, blocks=(128, 128), interpret=True, **options):
    shard_cases.check(partial(run, blocks=blocks, interpret=interpret), ids, **options)


@pytest.mark.parametrize("case", CASES)
def test_against_the_formulas(case):
    check(CASES[case])


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(3, 1, 128), (2, 2, 256)])
def test_heads(heads, kv_heads, head_dim):
    check(CASES["segments"], heads=heads, kv_heads=kv_heads, head_dim=head_dim)


@pytest.mark.parametrize("blocks", [(256, 128), (128, 384)])
def test_blocks_and_lengths_that_differ(blocks):
    check((positions((200, 712)), positions((0, 768)), None, None), blocks=blocks)


def test_a_share_is_added_to_what_other_keys_gave():
    ids = CASES["segments of two shards"]
    q, k, v, d_out = inputs(ids, heads=2, kv_heads=1)
    numbers = jnp.zeros(q.shape[:3]), jnp.ones(q.shape[:3])
    backward = partial(tpu_backward.backward, scale=SCALE, block_q=128, block_k=128, interpret=True)
    share, *gradients = backward(q, d_out, *numbers, k, v, *ids)
    total, *same = backward(q, d_out, *numbers, k, v, *ids, dq=jnp.full(q.shape, 3.0))
    np.testing.assert_allclose(total, share + 3, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, same, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16():
    check(CASES["segments of two shards"], dtype=jnp.bfloat16, head_dim=64, out_atol=2e-2, gradient_atol=4e-2)


def test_emulated_memory_and_transfers(capfd):
    """Pallas's emulator fills memory with NaN until it is written, and prints reads that race with transfers."""
    check(CASES["segments of two shards"], interpret=pltpu.InterpretParams(detect_races=True))
    assert "RACE" not in capfd.readouterr().out.upper()


@pytest.mark.parametrize("case", ["future", "padding", "segments"])
def test_rows_that_see_nothing(case):
    shard_cases.check_blind_rows(run, case)


@pytest.mark.parametrize("case", ["future", "half future", "zigzag", "segments of two shards"])
def test_what_nobody_sees_is_not_computed(case):
    shard_cases.check_unseen_is_not_computed(run, case, 128)


@pytest.mark.parametrize("blocks", [(64, 128), (128, 100), (128, 384), (0, 128)])
def test_blocks_that_do_not_fit(blocks):
    ids = CASES["diagonal"]
    with pytest.raises(ValueError, match=r"block_[qk] = \d+ must be a multiple of 128 and divide .* 256"):
        run(*inputs(ids), ids, jnp.float32(0), jnp.float32(0), blocks=blocks)


def ring_step(q, k, v, d_out, ids, blocks=(128, 128), interpret=False):
    """Hops of a ring in a scan, forward and backward, as a device takes them."""
    options = dict(scale=SCALE, block_q=blocks[0], block_k=blocks[1], interpret=interpret)

    def hop(carry, _):
        total, (k, v, k_positions) = carry
        send = [(i, (i + 1) % lax.axis_size("seq")) for i in range(lax.axis_size("seq"))]
        arriving = jax.tree.map(lambda x: lax.ppermute(x, "seq", send), (k, v, k_positions))
        hop_ids = (ids[0], k_positions, *ids[2:])
        out, lse = tpu.forward(q, k, v, *hop_ids, **options)
        dq, dk, dv = tpu_backward.backward(q, d_out, lse, lse, k, v, *hop_ids, **options)
        return (total + out + dq + dk.sum() + dv.sum(), arriving), lse

    zero = lax.pcast(jnp.zeros(q.shape, jnp.float32), "seq", to="varying")
    (total, _), lse = lax.scan(hop, (zero, (k, v, ids[1])), length=lax.axis_size("seq"))
    return total, lse[0]


def test_in_shard_map():
    """Interpreted; Pallas's interpreter does not know check_vma (the compiled test below uses it)."""
    mesh = jax.make_mesh((2,), ("seq",), axis_types=(AxisType.Auto,))
    q, k, v, d_out = inputs((positions((0, 256)), positions((0, 256))), heads=1, kv_heads=1)
    ids = (positions((0, 256)), positions((0, 256)), None, None)
    spec, id_spec = P(None, None, "seq"), (P(None, "seq"), P(None, "seq"), None, None)
    step = jax.shard_map(
        partial(ring_step, interpret=True),
        mesh=mesh,
        in_specs=(spec, spec, spec, spec, id_spec),
        out_specs=(spec, spec),
        check_vma=False,
    )
    total, lse = jax.jit(step)(q, k, v, d_out, ids)
    assert np.isfinite(total).all()
    local = [jnp.s_[:, :, :128], jnp.s_[:, :, 128:]]
    for shard in local:
        shard_ids = (ids[0][shard[1:]], ids[1][shard[1:]], None, None)
        np.testing.assert_allclose(
            lse[shard], reference(q[shard], k[shard], v[shard], shard_ids)[1], atol=2e-5, rtol=2e-5
        )


COMPILED = [
    pytest.param("v5e:2x4", jnp.bfloat16, 64, 4, 8, 4096),
    pytest.param("v4:2x2x1", jnp.bfloat16, 128, 2, 2, 64_000),
    *(
        pytest.param(chip, dtype, head_dim, heads, kv_heads, run, marks=pytest.mark.slow)
        for chip in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
        for dtype, head_dim, heads, kv_heads, run in (
            (jnp.bfloat16, 32, 4, 1, 64_000),
            (jnp.bfloat16, 128, 4, 4, 32_000),
            (jnp.bfloat16, 256, 2, 2, 64_000),
            (jnp.float32, 64, 4, 2, 100),
            (jnp.float32, 128, 2, 2, 64_000),
            (jnp.float32, 256, 2, 1, 64_000),
        )
    ),
]


@needs_libtpu
@pytest.mark.parametrize("chip, dtype, head_dim, heads, kv_heads, run", COMPILED)
def test_compiles(chip, dtype, head_dim, heads, kv_heads, run):
    """By the real compiler, in a scanned ring under check_vma: vector and scalar memory are enough for its blocks."""
    devices = find_devices(chip)
    mesh = Mesh(np.array(devices), ("seq",), axis_types=(AxisType.Auto,))
    blocks = choose_blocks(run, run, head_dim, jnp.dtype(dtype).itemsize)
    shard = -(-8192 // math.lcm(*blocks)) * math.lcm(*blocks)
    length = shard * len(devices)
    spec, id_spec = P(None, None, "seq"), P(None, "seq")

    def argument(shape, kind, spec):
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))

    q = argument((2, heads * kv_heads, length, head_dim), dtype, spec)
    k = argument((2, kv_heads, length, head_dim), dtype, spec)
    ids = (argument((1, length), jnp.int32, id_spec),) * 2 + (argument((2, length), jnp.int32, id_spec),) * 2
    step = jax.shard_map(
        partial(ring_step, blocks=blocks),
        mesh=mesh,
        in_specs=(spec, spec, spec, spec, (id_spec,) * 4),
        out_specs=(spec, spec),
    )
    with optimised():
        text = jax.jit(step).lower(q, k, k, q, ids).compile().as_text()
    assert "%attention_forward" in text
    results = re.search(r"%attention_backward[\d.]* = \((f32\[[^)]*?\]\{[^}]*\})", text)
    assert results and "S(1)" not in results[1], "dq must be in HBM"
