"""The GPU kernels, compiled by the real CUDA compiler: no GPU runs them here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.attention import blockwise_attention, ring_attention
from ringrl.planner.topology import find_devices
from tests.attention.gpu_compiler import compile_kernels
from tests.planner.compilers import needs_cuda_compiler

KERNELS = {"attention_forward", "attention_backward_dq", "attention_backward_dkv"}
PRODUCTS = {"a100": "mma.sync", "h100": "wgmma.mma", "b200": "tcgen05.mma"}  # of the matrix units, for 16-bit numbers


def lower_training(chip, dtype, head_dim, heads, kv_heads, devices=1):
    """Attention with segments, forward and backward, as training calls it: the platform's kernel, no option."""
    mesh = Mesh(np.array(find_devices(f"{chip}:{devices}")), ("seq",), axis_types=(AxisType.Auto,))
    spec = P(None, "seq")

    def local(q, k, v, segments):
        if devices == 1:
            return blockwise_attention(q, k, v, segment_ids=segments)
        return ring_attention(q, k, v, axis_name="seq", segment_ids=segments)

    attend = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)

    def train(q, k, v, segments, weights):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments), q, k, v)
        return out, pull(weights)

    def argument(*shape, kind=dtype):
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))

    length = 4096 * devices
    q, k = argument(2, length, heads, head_dim), argument(2, length, kv_heads, head_dim)
    return jax.jit(train).lower(q, k, k, argument(2, length, kind=jnp.int32), q)


COMPILED = [
    pytest.param("h100", jnp.bfloat16, 128),
    *(
        pytest.param(chip, dtype, head_dim, marks=pytest.mark.slow)
        for chip in PRODUCTS
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
        for head_dim in (32, 48, 64, 96, 128, 256)
        if (chip, dtype, head_dim) != ("h100", jnp.bfloat16, 128)
    ),
]


@needs_cuda_compiler
@pytest.mark.parametrize("chip, dtype, head_dim", COMPILED)
def test_compiles_to_machine_code_without_spills(tmp_path, chip, dtype, head_dim):
    """What training calls is these kernels, their products are the matrix units', and no sum is left to chance."""
    found = compile_kernels(lower_training(chip, dtype, head_dim, 4, 2), tmp_path)
    assert set(found.launches) == KERNELS
    wanted = "fma.rn.f32" if dtype == jnp.float32 else PRODUCTS[chip]
    assert wanted in found.ptx
    assert "tf32" not in found.ptx
    assert not re.search(r"^\s*(@%\w+ )?(atom|red)\.", found.ptx, re.MULTILINE)


@needs_cuda_compiler
@pytest.mark.parametrize(
    "chip", [pytest.param(chip, marks=() if chip == "b200" else pytest.mark.slow) for chip in PRODUCTS]
)
def test_a_ring_compiles(tmp_path, chip):
    """A zigzag ring under check_vma: every hop is the kernels'."""
    found = compile_kernels(lower_training(chip, jnp.bfloat16, 64, 4, 1, devices=4), tmp_path)
    assert set(found.launches) == KERNELS
