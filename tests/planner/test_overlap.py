"""Transfers hide behind attention: read from the schedules that the real TPU compiler makes for each chip."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ringrl.attention import compiler_options, ring_attention
from ringrl.config import MeshConfig
from ringrl.planner.schedule import read_transfers
from ringrl.planner.topology import find_devices
from ringrl.training.mesh import make_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed: pip install "ringrl[plan]"'
)
SHARD, HEADS, KV_HEADS, DIM = 4096, 8, 4, 128


def compile_ring(topology, kernel=None, layers=None):
    """Attention, forward and backward, on a ring of all devices, or a scan over layers of it; and the ring's size."""
    devices = find_devices(topology)
    mesh = make_mesh(MeshConfig(seq=len(devices)), devices)
    spec = P(None, "seq")
    attend = jax.shard_map(
        partial(ring_attention, axis_name="seq", kernel=kernel), mesh=mesh, in_specs=spec, out_specs=spec
    )

    def train(q, k, v, weights):
        def layer(x, _):
            return attend(x, x[:, :, :KV_HEADS] + k, x[:, :, :KV_HEADS] * v), None

        def loss(q):
            if layers is None:
                return attend(q, k, v)
            return lax.scan(jax.checkpoint(layer, prevent_cse=False), q, None, length=layers)[0]

        out, backward = jax.vjp(loss, q) if layers else jax.vjp(attend, q, k, v)
        return out, backward(weights)

    def shape(heads):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((1, SHARD * len(devices), heads, DIM), jnp.bfloat16, sharding=sharding)

    arguments = shape(HEADS), shape(KV_HEADS), shape(KV_HEADS), shape(HEADS)
    options = compiler_options(devices[0].platform)
    return jax.jit(train, compiler_options=options).lower(*arguments).compile(), len(devices)


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "kernel"),
    [
        ("v4:2x2x2", None),
        ("v5e:2x4", None),
        ("v5e:4x8", None),  # in rows, as JAX would lay it, none of this ring's transfers hides
        ("v5p:2x2x2", None),
        ("v6e:2x4", None),
        pytest.param("v5e:2x4", "xla", marks=pytest.mark.slow),
    ],
)
def test_every_transfer_of_the_ring_hides_behind_attention(topology, kernel):
    compiled, ring = compile_ring(topology, kernel)
    transfers = read_transfers(compiled.as_text())
    assert {t.kind for t in transfers} == {"collective-permute"}
    pallas = {name for t in transfers for name in t.hidden_by if name.startswith("attention_")}
    assert bool(pallas) == (kernel is None)  # the mesh's devices are TPUs, so the TPU kernel is taken
    assert [t for t in transfers if not t.hidden_by] == []
    # Keys and values make ring - 1 hops forward and as many backward, in bfloat16 and with their own number of heads;
    # their float32 gradients make ring hops.
    keys = SHARD * KV_HEADS * DIM * 2
    assert sum(t.sent_bytes * t.times for t in transfers) == (ring - 1) * 2 * 2 * keys + ring * 2 * (2 * keys)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x2", "v5p:2x2x2"])
def test_transfers_also_hide_inside_a_scan_over_layers(topology):
    compiled, _ = compile_ring(topology, layers=3)
    transfers = read_transfers(compiled.as_text())
    assert transfers and [t for t in transfers if not t.hidden_by] == []


PROGRAM = """
HloModule ring, is_scheduled=true, num_partitions=8

%product (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %d = f32[8]{0} dot(%x, %x), lhs_contracting_dims={}
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %start = (f32[4,8]{1,0:T(8,128)}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%p), channel_id=1
  %work = f32[8]{0} fusion(%p), kind=kOutput, calls=%product
  %done = f32[4,8]{1,0} collective-permute-done(%start)
  %late = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  %done.2 = f32[4,8]{1,0} collective-permute-done(%late)
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%p, %done)
}

%condition (p.2: (s32[], f32[4,8])) -> pred[] {
  %p.2 = (s32[], f32[4,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%p.2, %limit), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %loop = (s32[], f32[4,8]{1,0}) while(%a), condition=%condition, body=%body
  %sum = bf16[16]{0} all-reduce(%loop), replica_groups={{0,1,2,3}}, to_apply=%add
  %all = f32[8]{0} all-gather(%sum), replica_groups=[2,4]<=[8], dimensions={0}
  %pair = ((f32[2], f32[2]), (f32[16], f32[16])) all-gather-start(%a, %a), replica_groups={}
  %got = (f32[16], f32[16]) all-gather-done(%pair)
  ROOT %some = f32[8]{0} reduce-scatter(%all), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_a_schedule_read_by_hand():
    found = {t.name: t for t in read_transfers(PROGRAM)}
    assert found["start"].hidden_by == ("work",) and found["late"].hidden_by == ()
    assert (found["start"].sent_bytes, found["start"].times) == (128, 7)
    assert found["sum"].sent_bytes == 2 * 32 * 3 // 4
    assert found["all"].sent_bytes == 32 * 3 // 4
    assert found["pair"].sent_bytes == 2 * 64 * 7 // 8
    assert found["some"].sent_bytes == 32 and found["some"].kind == "reduce-scatter"
