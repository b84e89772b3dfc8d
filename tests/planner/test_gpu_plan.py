"""The training step and the agent step compiled for GPUs that are not there."""

import numpy as np
import pytest

from ringrl.accelerators import Accelerator
from ringrl.config import MeshConfig
from ringrl.planner import find_max_context, plan_decode, plan_training_step
from ringrl.planner.bound import ring_bandwidth
from ringrl.planner.topology import find_devices
from ringrl.training.mesh import make_mesh
from tests.builders import PLANNED, make_config
from tests.planner.compilers import needs_cuda_compiler

MODEL = {"layers": 1, "width": 64, "heads": 2, "kv_heads": 2, "max_steps": 16, "max_trials": 2}
PLAIN = {"model": MODEL | {"compute_dtype": "bfloat16"}, "training": {"steps": 10, "batch": 1, "row_steps": 512}}


@needs_cuda_compiler
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_a_small_step_fits(standard_promotion):
    plan = plan_training_step(make_config(PLANNED | PLAIN), "h100:2")
    assert plan.fits and plan.reason is None and plan.mesh["seq"] == 2
    assert (
        plan.bytes_per_device == plan.argument_bytes + plan.temporary_bytes < plan.hbm_bytes == int(0.8 * 84942979072)
    )
    assert sum(plan.memory.values()) == plan.bytes_per_device
    assert {"parameters", "optimiser state", "batch", "attention"} <= set(plan.memory)
    assert plan.traffic is not None and plan.traffic["ring"] >= plan.traffic["ring_waited"]
    # Keys and values, in bfloat16, one hop forward and one backward; their float32 gradients two; segment ids too.
    tokens = plan.row_tokens // 2
    keys = tokens * 64 * 2
    assert 2 * 2 * keys + 2 * 2 * 2 * keys <= plan.traffic["ring"] < 1.1 * (12 * keys)


@pytest.mark.slow
@needs_cuda_compiler
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_a_program_that_is_too_large_compiles_and_does_not_fit(standard_promotion):
    config = make_config(PLANNED | PLAIN, training={"row_steps": 2**25}, model={"block": 1024})
    plan = plan_training_step(config, "a100_40gb:1")
    assert not plan.fits and plan.traffic is None and plan.mfu_bound is None
    assert plan.bytes_per_device > plan.hbm_bytes
    assert plan.reason and f"{plan.bytes_per_device:,} bytes of a device's {plan.hbm_bytes:,}" in plan.reason
    assert sum(plan.memory.values()) == plan.bytes_per_device and plan.largest


@needs_cuda_compiler
def test_an_agent_step_fits(standard_promotion):
    plan = plan_decode(make_config(PLANNED | PLAIN), "h100:2", environments=2, context=4096)
    assert plan.fits and plan.sent is not None and plan.sent.combinations_per_layer == 2
    assert plan.temporary_bytes < 2**20 and plan.seconds_bound is not None


@needs_cuda_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_the_longest_context(standard_promotion):
    found = find_max_context(make_config(PLANNED | PLAIN), "a100:2", precision=1.0, start=2**22)
    assert found.plan is not None and found.plan.fits and found.too_long is not None
    assert found.max_context < found.too_long <= 2.1 * found.max_context


CHIP = Accelerator(flops=100.0, hbm_bandwidth=10.0, link_bandwidth=5.0, links=1, network_bandwidth=0.5)
LINKED = Accelerator(flops=100.0, hbm_bandwidth=10.0, link_bandwidth=5.0, links=4)


@needs_cuda_compiler
def test_a_ring_across_hosts_waits_for_their_network():
    devices = find_devices("h100:2x4")
    across, within = (make_mesh(MeshConfig(data=8 // seq, seq=seq), devices) for seq in (8, 4))
    assert {len({d.process_index for d in row}) for row in np.squeeze(within.devices)} == {1}
    assert (ring_bandwidth(CHIP, across), ring_bandwidth(CHIP, within)) == (0.5, 5.0)
    assert ring_bandwidth(LINKED, across) == 5.0  # a TPU's links lead to other hosts too
