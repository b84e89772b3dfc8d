"""Each implementation of the local step behind the same interface, around a ring; and which one is taken where."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ringrl.attention import (
    blockwise_attention,
    dense_attention,
    from_ring_order,
    kernels,
    ring_attention,
    to_ring_order,
)
from ringrl.attention.kernels import choose_kernel, make_step, native
from ringrl.attention.kernels.hardware_steps import GpuStep, TpuStep
from ringrl.attention.kernels.xla import XlaStep


def dense(q, k, v, segments):
    return dense_attention(q, k, v, segment_ids=segments, return_lse=True)


@cache
def around(kernel, size, layout, exchange="ring"):
    mesh = jax.make_mesh((size,), ("seq",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])
    spec = P(None, "seq")
    sharded = jax.shard_map(
        lambda q, k, v, s: ring_attention(
            q, k, v, axis_name="seq", segment_ids=s, layout=layout, exchange=exchange, kernel=kernel, return_lse=True
        ),
        mesh=mesh,
        in_specs=spec,
        out_specs=(spec, P(None, None, "seq")),
        check_vma=False,  # Pallas's interpreter does not know it
    )

    def attend(q, k, v, segments):
        out, lse = sharded(*jax.tree.map(lambda x: to_ring_order(x, size, layout), (q, k, v, segments)))
        return from_ring_order(out, size, layout), from_ring_order(lse, size, layout, axis=2)

    return attend


@pytest.fixture
def interpreted(monkeypatch):
    """interpreted(kernel): Pallas's interpreter runs the kernels of that platform, here."""

    def pretend(kernel):
        monkeypatch.setattr(kernels, "platform", lambda: kernel)
        monkeypatch.setattr(kernels, "TpuStep", partial(TpuStep, interpret=True))
        monkeypatch.setattr(kernels, "GpuStep", partial(GpuStep, interpret=True))

    return pretend


@pytest.mark.parametrize("kernel", ["tpu", "gpu"])
@pytest.mark.parametrize(("size", "layout", "exchange"), [(2, "zigzag", "ring"), (2, "striped", "all_gather")])
def test_pallas_kernels_around_a_ring_agree_with_the_oracle(
    interpreted, random_inputs, compare, kernel, size, layout, exchange
):
    interpreted(kernel)
    segments = jnp.asarray(np.repeat([[1, 2, 0]], 100, axis=1), jnp.int32)  # shards of 150: padded to blocks of 128
    compare(around(kernel, size, layout, exchange), dense, *random_inputs(1, 300, 4, 2, 32), segments)


def test_the_gpu_kernel_on_one_device_agrees_with_the_oracle(interpreted, random_inputs, compare):
    """Without causality, without segments, and with heads that tiles pad."""
    interpreted("gpu")

    def attend(causal, attention, **options):
        return lambda q, k, v, _: attention(q, k, v, causal=causal, return_lse=True, **options)

    inputs = random_inputs(1, 200, 2, 1, 48)
    compare(attend(False, blockwise_attention, kernel="gpu"), attend(False, dense_attention), *inputs)


def test_the_platform_of_the_mesh_decides():
    q = jnp.zeros((1, 128, 2, 32))
    here = "native" if native.available() else "xla"
    assert choose_kernel(q) == here
    mesh = jax.make_mesh((8,), ("seq",), axis_types=(AxisType.Auto,))
    seen = []

    def local(x):
        seen.append(kernels.platform())
        return x

    jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("seq"), out_specs=P("seq")))(jnp.zeros(8))
    assert set(seen) == {"cpu"}


def test_a_platform_s_kernel_is_taken_where_it_can(monkeypatch):
    q = jnp.zeros((1, 128, 2, 32))
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    step = make_step(q, q)
    assert isinstance(step, TpuStep) and step.sizes.q.block == 128
    assert isinstance(make_step(wide := jnp.zeros((1, 128, 2, 192)), wide), XlaStep)  # neither in lanes of 128 nor less
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    step = make_step(q, q)
    assert isinstance(step, GpuStep) and not step.interpret and step.sizes.q.block == 128
    assert isinstance(make_step(half := q.astype(jnp.float16), half), GpuStep)
    assert isinstance(make_step(wide, wide), GpuStep)
    assert isinstance(make_step(wider := jnp.zeros((1, 128, 2, 288)), wider), XlaStep)
    monkeypatch.setattr(kernels, "platform", lambda: "rocm")
    assert isinstance(make_step(q, q), XlaStep)
    monkeypatch.setattr(kernels, "platform", lambda: "cpu")
    assert isinstance(make_step(half := q.astype(jnp.float16), half), XlaStep)
    monkeypatch.setattr(native, "available", lambda: False)
    assert isinstance(make_step(q, q), XlaStep)


def test_a_kernel_that_cannot_be_used_says_why(monkeypatch):
    q = jnp.zeros((1, 16, 2, 32))
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(ValueError, match="kernel 'native' cannot be used here: it needs a C\\+\\+ compiler"):
        blockwise_attention(q, q, q, kernel="native")
    with pytest.raises(ValueError, match="kernel 'tpu' cannot be used here: it is for tpu, this is cpu"):
        blockwise_attention(q, q, q, kernel="tpu")
    with pytest.raises(ValueError, match="kernel 'gpu' cannot be used here: it is for gpu, this is cpu"):
        blockwise_attention(q, q, q, kernel="gpu")
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    with pytest.raises(
        ValueError, match="kernel 'gpu' cannot be used here: it takes heads of up to 256 numbers, not 288"
    ):
        blockwise_attention(wide := jnp.zeros((1, 16, 2, 288)), wide, wide, kernel="gpu")
    with pytest.raises(ValueError, match="it takes float32, float16 and bfloat16, not float8_e5m2"):
        make_step(short := q.astype(jnp.float8_e5m2), short, kernel="gpu")


def test_a_gpu_that_is_too_old_trains_with_xla(monkeypatch):
    class Volta:
        device_kind, compute_capability = "Tesla V100-SXM2-32GB", "7.0"

    q = jnp.zeros((1, 16, 2, 32))
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(kernels.jax, "devices", lambda: [Volta])
    assert choose_kernel(q) == "xla"
    with pytest.raises(ValueError, match="it needs compute capability 8.0 or later, Tesla V100-SXM2-32GB has 7.0"):
        make_step(q, q, kernel="gpu")


def test_jit_distinguishes_steps():
    q = jnp.zeros((1, 128, 2, 32))
    step = make_step(q, q, kernel="xla")
    assert hash(step) == hash(make_step(q, q, kernel="xla"))
    assert step != dataclasses.replace(step, sizes=dataclasses.replace(step.sizes, scale=1.0))
    assert step.sizes == make_step(q, q, kernel="xla").sizes
