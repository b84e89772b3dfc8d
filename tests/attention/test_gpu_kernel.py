"""The step on NVIDIA GPUs, without one: plain formulas replace cuDNN's two calls, the real ones lower for CUDA."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.export import DisabledSafetyCheck, export
from jax.sharding import PartitionSpec as P

from ringrl.attention.block_attention import MASKED_LSE, NEVER_SEEN, SEES_ALL
from ringrl.attention.dense import dense_attention
from ringrl.attention.kernels import gpu
from ringrl.attention.layout import ring_positions, to_ring_order
from ringrl.attention.ring import ring_attention
from tests.attention.cudnn_formulas import attend, differentiate, top_left

LAYOUTS = ["contiguous", "zigzag", "striped"]


@pytest.fixture
def formulas(monkeypatch):
    """cuDNN's calls as plain formulas."""
    monkeypatch.setattr(
        gpu, "_cudnn_forward", lambda q, k, v, causal, scale: attend(q, k, v, top_left(q, k, causal), scale)
    )
    monkeypatch.setattr(
        gpu,
        "_cudnn_backward",
        lambda q, k, v, lse, out, d_out, causal, scale: differentiate(
            q, k, v, lse, out, d_out, top_left(q, k, causal), scale
        ),
    )


def shard_positions(index, length, ring, layout):
    return ring_positions(index, length, ring, layout)[None]


def compiled_step(layout, scale, middle=None):
    """(q, k, v, weights, lse weights or None, q positions, k positions) -> out, lse, dq, dk, dv."""
    runs = 2 if layout == "zigzag" else 1
    sizes = {"scale": scale, "q_chunks": runs, "k_chunks": runs, "k_split": middle}

    def step(q, k, v, weights, d_lse, q_positions, k_positions):
        out, lse = gpu.forward(q, k, v, q_positions, k_positions, **sizes)
        rows = q, out.astype(q.dtype), weights, lse
        return out, lse, *gpu.backward(*rows, k, v, q_positions, k_positions, **sizes, d_lse=d_lse)

    return jax.jit(step)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pair_of_shards(formulas, random_inputs, layout):
    ring, length, heads, scale = 3, 8, 4, 0.3
    q, k, v, weights = random_inputs(2, length, heads, 2, 8)
    d_lse = jnp.sin(jnp.arange(2 * length * heads, dtype=jnp.float32)).reshape(2, length, heads)
    step = compiled_step(layout, scale)
    for i, j in np.ndindex(ring, ring):
        q_positions, k_positions = (shard_positions(x, length, ring, layout) for x in (i, j))
        seen = q_positions[0][:, None] >= k_positions
        out, lse = attend(q, k, v, seen, scale)
        out = jnp.where(seen.any(1)[None, :, None, None], out, 0.0)
        lse = jnp.where(seen.any(1)[None, None], lse, MASKED_LSE)
        wanted = out, lse.swapaxes(1, 2), *differentiate(q, k, v, lse, out, weights, seen, scale, d_lse.swapaxes(1, 2))
        got = step(q, k, v, weights, d_lse, q_positions, k_positions)
        for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, wanted, strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5, err_msg=f"{name}, shards {i} and {j}")


@pytest.mark.parametrize(
    "layout, causal, middle",
    [
        ("zigzag", True, 4),
        ("zigzag", False, 4),
        ("striped", True, 5),
        ("contiguous", True, 8),
        ("contiguous", False, 3),
    ],
)
def test_a_shard_of_which_half_the_keys_are_hidden(formulas, random_inputs, layout, causal, middle):
    q, k, v, weights = random_inputs(1, 8, 2, 1, 8)
    at = shard_positions(1, 8, 3, layout)
    q_positions = at if causal else jnp.full_like(at, SEES_ALL)
    step = compiled_step(layout, 1.0, middle)
    wanted = step(q, k, v, weights, None, q_positions, at)
    early = jnp.arange(8)[None] < middle
    parts = []
    for hidden in (~early, early):
        poisoned = [jnp.where(hidden[..., None, None], jnp.nan, x) for x in (k, v)]
        parts.append(step(q, *poisoned, weights, None, q_positions, jnp.where(hidden, NEVER_SEEN, at)))
    lse = jnp.logaddexp(*(lse for _, lse, *_ in parts))
    out = sum(out * jnp.exp(part - lse)[..., None] for out, part, *_ in parts)
    for a, b in zip((out, lse), wanted, strict=False):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    _, backward = compiled(1.0, 2 if layout == "zigzag" else 1, 2 if layout == "zigzag" else 1, middle)
    gradients = [
        backward(q, wanted[0], weights, wanted[1], k, v, q_positions, jnp.where(hidden, NEVER_SEEN, at))
        for hidden in (~early, early)
    ]
    for a, b, both in zip(*gradients, wanted[2:], strict=True):
        np.testing.assert_allclose(a + b, both, atol=1e-5, rtol=1e-5)


@cache
def compiled(scale, q_chunks, k_chunks, k_split=None):
    sizes = {"scale": scale, "q_chunks": q_chunks, "k_chunks": k_chunks, "k_split": k_split}
    return jax.jit(partial(gpu.forward, **sizes)), jax.jit(partial(gpu.backward, **sizes))


def around_the_ring(layout, ring, q, k, v, weights):
    """What a ring of devices would return, its shards visited one after the other: out, dq, dk, dv in ring order."""
    runs, length = 2 if layout == "zigzag" else 1, q.shape[1] // ring
    forward, backward = compiled(q.shape[-1] ** -0.5, runs, runs)
    shard = lambda x, i: x[:, i * length : (i + 1) * length]  # noqa: E731
    at = [shard_positions(i, length, ring, layout) for i in range(ring)]
    outs, dqs, dks, dvs = [], [], [jnp.float32(0)] * ring, [jnp.float32(0)] * ring
    for i in range(ring):
        parts = [forward(shard(q, i), shard(k, j), shard(v, j), at[i], at[j]) for j in range(ring)]
        lse = jax.nn.logsumexp(jnp.stack([lse for _, lse in parts]), axis=0)
        outs.append(sum(out * jnp.exp(part - lse)[..., None] for out, part in parts).astype(q.dtype))
        rows, dq = (shard(q, i), outs[i], shard(weights, i), lse), jnp.float32(0)
        for j in range(ring):
            more, dk, dv = backward(*rows, shard(k, j), shard(v, j), at[i], at[j])
            dq, dks[j], dvs[j] = dq + more, dks[j] + dk, dvs[j] + dv
        dqs.append(dq.astype(q.dtype))
    return [jnp.concatenate(x, axis=1).astype(q.dtype) for x in (outs, dqs, dks, dvs)]


def dense(q, k, v, weights):
    """out, dq, dk, dv in float32."""
    q, k, v, weights = (x.astype(jnp.float32) for x in (q, k, v, weights))
    out, pull = jax.vjp(dense_attention, q, k, v)
    return [out, *pull(weights)]


@pytest.mark.parametrize("layout", ["zigzag", "striped"])
def test_rounding_hops_to_bfloat16_costs_less_than_twice_rounding_the_result(formulas, random_inputs, layout):
    ring = 8
    inputs = random_inputs(1, 128, 4, 2, 16, dtype=jnp.bfloat16)
    got = around_the_ring(layout, ring, *(to_ring_order(x, ring, layout) for x in inputs))
    wanted = [np.asarray(to_ring_order(x, ring, layout)) for x in dense(*inputs)]
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        error = np.linalg.norm(np.float32(a) - b) / np.linalg.norm(b)
        rounded = np.float32(jnp.asarray(b).astype(jnp.bfloat16))
        once = np.linalg.norm(rounded - b) / np.linalg.norm(b)
        assert error < 2 * once, f"{name}: {error} against {once}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ring_attention_by_this_step_is_dense_attention(formulas, monkeypatch, random_inputs, layout):
    monkeypatch.setattr(gpu, "supported", lambda q, k, segmented: None)
    mesh = jax.make_mesh((4,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    ring = partial(ring_attention, axis_name="seq", layout=layout, kernel="gpu")
    attend = jax.shard_map(ring, mesh=mesh, in_specs=P(None, "seq"), out_specs=P(None, "seq"))
    arrays = random_inputs(1, 64, 4, 2, 8)
    *inputs, weights = (to_ring_order(x, 4, layout) for x in arrays)
    out, pull = jax.vjp(jax.jit(attend), *inputs)
    for a, b in zip([out, *pull(weights)], dense(*arrays), strict=True):
        np.testing.assert_allclose(a, to_ring_order(b, 4, layout), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("layout", ["zigzag", "striped"])
def test_keys_of_all_shards_at_once(formulas, random_inputs, layout):
    ring, length, runs = 2, 8, 2 if layout == "zigzag" else 1
    q, k, v, weights = random_inputs(2, ring * length, 4, 2, 8)
    wanted = around_the_ring(layout, ring, q, k, v, weights)
    k_positions = jnp.concatenate([shard_positions(i, length, ring, layout) for i in range(ring)], axis=1)
    forward, backward = compiled(8**-0.5, runs, runs * ring)
    gradients = 0.0, 0.0
    for i in range(ring):
        here = slice(i * length, (i + 1) * length)
        q_positions = shard_positions(i, length, ring, layout)
        out, lse = forward(q[:, here], k, v, q_positions, k_positions)
        rows = q[:, here], out, weights[:, here], lse
        dq, *more = backward(*rows, k, v, q_positions, k_positions)
        gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        for a, b in zip((out, dq), wanted, strict=False):
            np.testing.assert_allclose(a, b[:, here], atol=2e-5, rtol=2e-5)
    for a, b in zip(gradients, wanted[2:], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


def test_runs_that_make_no_shards(random_inputs):
    q, k, v, _ = random_inputs(1, 6, 2, 1, 8)
    at = jnp.arange(6, dtype=jnp.int32)[None]
    with pytest.raises(ValueError, match="6 queries in 2 runs and 6 keys in 3 do not make shards"):
        gpu.forward(q, k, v, at, at, scale=1.0, q_chunks=2, k_chunks=3)


@pytest.mark.parametrize("position, sees", [(SEES_ALL, True), (-1, False)])
def test_queries_that_causality_does_not_bind(formulas, random_inputs, position, sees):
    q, k, v, weights = random_inputs(1, 6, 2, 1, 8)
    everywhere = jnp.full((1, 6), position, jnp.int32)
    got = compiled_step("contiguous", 1.0)(q, k, v, weights, None, everywhere, shard_positions(1, 6, 2, "striped"))
    if sees:
        out, lse = attend(q, k, v, jnp.ones((6, 6), bool), 1.0)
        wanted = out, lse.swapaxes(1, 2), *differentiate(q, k, v, lse, out, weights, jnp.ones((6, 6), bool), 1.0)
    else:
        wanted = [jnp.full(x.shape, MASKED_LSE if index == 1 else 0.0) for index, x in enumerate(got)]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    "layout, i, j, unseen",
    [
        ("contiguous", 0, 1, slice(None)),
        ("contiguous", 1, 1, None),
        ("zigzag", 1, 0, slice(4, None)),  # the early device's late chunk
        ("zigzag", 0, 1, None),
        ("striped", 0, 1, slice(7, None)),
    ],
)
def test_what_nobody_sees_is_not_computed(formulas, random_inputs, layout, i, j, unseen):
    q, k, v, weights = random_inputs(1, 8, 2, 1, 8)
    if unseen is not None:
        k, v = k.at[:, unseen].set(jnp.nan), v.at[:, unseen].set(jnp.nan)
    at = [shard_positions(x, 8, 2, layout) for x in (i, j)]
    results = compiled_step(layout, 1.0)(q, k, v, weights, None, *at)
    assert all(bool(jnp.isfinite(x).all()) for x in results)
    if unseen is not None:
        assert not np.any(results[3][:, unseen]) and not np.any(results[4][:, unseen])
    if layout == "zigzag" and (i, j) == (0, 1):
        assert np.all(np.asarray(results[1][:, :4]) == np.float32(MASKED_LSE)) and not np.any(results[2][:, :4])


def test_positions_that_cudnn_cannot_mask_give_nan_rather_than_a_wrong_result(formulas, random_inputs):
    q, k, v, weights = random_inputs(1, 6, 2, 1, 8)
    at = jnp.arange(6, dtype=jnp.int32)[None]
    for q_positions in (at + 2, at * 2, at[:, ::-1]):
        results = compiled_step("contiguous", 1.0)(q, k, v, weights, None, q_positions, at)
        assert all(bool(jnp.isnan(x).all()) for x in results)


def on_a_ring(layout, check_vma, with_d_lse):
    """One hop on each of four devices, with keys that came from the neighbour; forward and backward."""
    mesh = jax.make_mesh((4,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    step = compiled_step(layout, 0.25)

    def hop(q, k, v, weights):
        index, length = lax.axis_index("seq"), q.shape[1]
        at = [shard_positions(x, length, 4, layout) for x in (index, lax.rem(index + 3, 4))]
        d_lse = jnp.ones(q.shape[:-1], jnp.float32) if with_d_lse else None
        return step(q, k, v, weights, d_lse, *at)

    spec = P(None, "seq")
    return jax.jit(jax.shard_map(hop, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma))


@pytest.mark.parametrize("layout, check_vma", [("zigzag", True), ("zigzag", False), ("striped", True)])
def test_under_shard_map(formulas, random_inputs, layout, check_vma):
    inputs = random_inputs(1, 32, 2, 1, 8)
    results = on_a_ring(layout, check_vma, True)(*inputs)
    shard = lambda x, i: x[:, i * 8 : (i + 1) * 8]  # noqa: E731
    at = [shard_positions(x, 8, 4, layout) for x in (2, 1)]
    d_lse = jnp.ones((1, 8, 2), jnp.float32)
    wanted = compiled_step(layout, 0.25)(*(shard(x, 2) for x in inputs), d_lse, *at)
    for a, b in zip(results, wanted, strict=True):
        np.testing.assert_allclose(shard(a, 2), b, atol=1e-6)


def cuda_text(function, *inputs):
    calls = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    checks = [DisabledSafetyCheck.custom_call(name) for name in calls]
    return export(jax.jit(function), platforms=["cuda"], disabled_checks=checks)(*inputs).mlir_module()


@pytest.mark.parametrize("layout, calls", [("contiguous", 7), ("zigzag", 7), ("striped", 7)])
def test_the_real_calls_lower_for_cuda(random_inputs, layout, calls):
    inputs = random_inputs(1, 512, 4, 2, 64, dtype=jnp.bfloat16)
    text = cuda_text(on_a_ring(layout, True, False), *inputs)
    assert text.count("@__cudnn$fmhaSoftmax(") == calls
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == calls
    assert all(text.count(f"mask_type\\22: \\22{mask}") for mask in ("NO_MASK", "CAUSAL"))
    assert cuda_text(on_a_ring(layout, False, True), *inputs).count("@__cudnn$fmhaSoftmaxBackward(") == 2 * calls


def test_the_real_calls_lower_without_a_mesh(random_inputs):
    q, k, v, weights = random_inputs(1, 128, 4, 2, 64, dtype=jnp.float16)
    at = jnp.arange(128, dtype=jnp.int32)[None]
    text = cuda_text(compiled_step("contiguous", 0.125), q, k, v, weights, None, at, at)
    assert "tensor<1x4x128x64xf16>" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
