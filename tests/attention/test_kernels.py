"""Each implementation of the local step behind the same interface, around a ring; and which one is taken where."""

import dataclasses
from functools import cache

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
from ringrl.attention.kernels.hardware_steps import TpuStep
from ringrl.attention.kernels.xla import XlaStep


def dense(q, k, v, segments):
    return dense_attention(q, k, v, segment_ids=segments, return_lse=True)


@cache
def around(size, layout, exchange="ring"):
    mesh = jax.make_mesh((size,), ("seq",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])
    spec = P(None, "seq")
    sharded = jax.shard_map(
        lambda q, k, v, s: ring_attention(
            q, k, v, axis_name="seq", segment_ids=s, layout=layout, exchange=exchange, kernel="tpu", return_lse=True
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


@pytest.mark.parametrize(("size", "layout", "exchange"), [(2, "zigzag", "ring"), (2, "striped", "all_gather")])
def test_the_tpu_kernel_around_a_ring_agrees_with_the_oracle(
    monkeypatch, random_inputs, compare, size, layout, exchange
):
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "TpuStep", lambda sizes: TpuStep(sizes, interpret=True))
    segments = jnp.asarray(np.repeat([[1, 2, 0]], 100, axis=1), jnp.int32)  # shards of 150: padded to blocks of 128
    compare(around(size, layout, exchange), dense, *random_inputs(1, 300, 4, 2, 32), segments)


def test_the_platform_of_the_mesh_decides():
    q = jnp.zeros((1, 128, 2, 32))
    here = "native" if native.available() else "xla"
    assert choose_kernel(q, q, False) == here
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
    assert isinstance(make_step(q, q), XlaStep)  # float32: not for cuDNN
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
    with pytest.raises(ValueError, match="kernel 'gpu' cannot be used here: cuDNN's fused attention takes bfloat16"):
        blockwise_attention(q, q, q, kernel="gpu")


def test_jit_distinguishes_steps():
    q = jnp.zeros((1, 128, 2, 32))
    step = make_step(q, q, kernel="xla")
    assert hash(step) == hash(make_step(q, q, kernel="xla"))
    assert step != dataclasses.replace(step, sizes=dataclasses.replace(step.sizes, scale=1.0))
    assert step.sizes == make_step(q, q, kernel="xla").sizes
