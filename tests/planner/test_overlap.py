"""Transfers hide behind attention: read from the schedules that the real TPU compiler makes for each chip."""

import pytest

from ringrl.planner.schedule import read_transfers
from tests.planner.compilers import needs_libtpu
from tests.planner.rings import Ring, compile_ring


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "kernel"),
    [
        pytest.param("v4:2x2x2", None, marks=pytest.mark.slow),
        ("v5e:2x4", None),
        ("v5e:4x8", None),  # in rows, as JAX would lay it, none of this ring's transfers hides
        pytest.param("v5p:2x2x2", None, marks=pytest.mark.slow),
        pytest.param("v6e:2x4", None, marks=pytest.mark.slow),
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
    assert sum(t.sent_bytes * t.times for t in transfers) == Ring().sent(ring)


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
