"""Transfers hide behind attention on GPUs: read from the schedules that XLA's CUDA compiler makes."""

import pytest

from ringrl.planner.schedule import read_transfers
from tests.planner.compilers import needs_cuda_compiler
from tests.planner.rings import Ring, compile_ring

SMALL = Ring(shard=512, heads=4, kv_heads=2, dim=64)


@needs_cuda_compiler
@pytest.mark.parametrize(
    "topology",
    ["h100:4", pytest.param("a100:4", marks=pytest.mark.slow), pytest.param("b200:4", marks=pytest.mark.slow)],
)
def test_every_transfer_of_the_ring_hides_behind_attention(topology):
    compiled, ring = compile_ring(topology, ring=SMALL)
    transfers = read_transfers(compiled.as_text())
    assert {t.kind for t in transfers} == {"collective-permute"}
    assert [t for t in transfers if not t.hidden_by] == []
    assert sum(t.sent_bytes * t.times for t in transfers) == SMALL.sent(ring)


@needs_cuda_compiler
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["a100:4", "h100:4", "b200:4"])
def test_transfers_also_hide_inside_a_scan_over_layers(topology):
    compiled, _ = compile_ring(topology, layers=3, ring=SMALL)
    transfers = read_transfers(compiled.as_text())
    assert transfers and [t for t in transfers if not t.hidden_by] == []


PROGRAM = """
HloModule ring, is_scheduled=true, num_partitions=4

%gemm (x: bf16[8,8]) -> f32[8,8] {
  %x = bf16[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (p: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %p = (s32[], bf16[8,8]{1,0}) parameter(0)
  %start = (bf16[8,8]{1,0}, bf16[8,8]{1,0}) collective-permute-start(%p), channel_id=1, backend_config={"is_sync":false}
  %fused = f32[8,8]{1,0} fusion(%p), kind=kCustom, calls=%gemm, backend_config={"kind":"__triton_nested_gemm_fusion"}
  %done = bf16[8,8]{1,0} collective-permute-done(%start)
  %kernel.start = ((bf16[8,8]{1,0}, s32[4]{0}), (bf16[8,8]{1,0}, s32[4]{0})) collective-permute-start(%p, %q)
  %kernel = bf16[8,8]{1,0} custom-call(%p), custom_call_target="__gpu$xla.gpu.triton"
  %kernel.done = bf16[8,8]{1,0} collective-permute-done(%kernel.start)
  ROOT %t = (s32[], bf16[8,8]{1,0}) tuple(%p, %done)
}

%condition (q: (s32[], bf16[8,8])) -> pred[] {
  %q = (s32[], bf16[8,8]{1,0}) parameter(0)
  ROOT %less = pred[] fusion(%q), kind=kLoop, calls=%compare
}

ENTRY %main (a: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %loop = (s32[], bf16[8,8]) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %sum = bf16[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_schedule_read_by_hand():
    found = {t.name: t for t in read_transfers(PROGRAM)}
    assert found["start"].hidden_by == ("fused",) and found["kernel.start"].hidden_by == ("kernel",)
    assert [(t.sent_bytes, t.times) for t in found.values()] == [(128, 3), (128 + 16, 3)]
