"""A rollout's agent step, compiled for TPUs and GPUs that are not there."""

import json
from dataclasses import asdict
from functools import partial

import pytest

from ringrl.cli.plan_verb import PlanVerb
from ringrl.errors import UserError
from ringrl.planner import find_max_cache, plan_decode
from ringrl.planner.decode_plan import Sent
from ringrl.planner.plan_table import to_decode_table, to_max_cache_table
from tests.builders import PLANNED, make_config
from tests.planner.compilers import needs_cuda_compiler, needs_libtpu

pytestmark = needs_libtpu
LAYERS, LANES = 2, 256
small = partial(
    make_config,
    PLANNED
    | {
        "model": {"layers": LAYERS, "width": LANES, "heads": 2, "kv_heads": 2, "max_steps": 16, "max_trials": 2},
        "training": {"steps": 10, "batch": 2, "row_steps": 65536},
    },
)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("cache_dtype, itemsize", [("bfloat16", 2), ("int8", 1)])
@pytest.mark.parametrize(
    "topology, bandwidth",
    [pytest.param("v5e:2x2", 819e9, id="TPU"), pytest.param("h100:4", 3.35e12, marks=needs_cuda_compiler, id="GPU")],
)
def test_an_agent_step_sends_one_combination_a_layer_and_copies_no_cache(topology, bandwidth, cache_dtype, itemsize):
    plan = plan_decode(small(model={"compute_dtype": "bfloat16"}), topology, environments=3, cache_dtype=cache_dtype)
    assert plan.fits and plan.reason is None and plan.mesh["seq"] == 4
    assert (
        plan.context_tokens == 65536 and plan.slots == 65536 // 4 + 2 * 1024
    )  # two calls of 512 tokens, a step, whole blocks
    scales = 2 * 4 if itemsize == 1 else 0  # of each key head
    layer = 3 * plan.slots * 2 * (LANES * itemsize + scales)
    ids = 3 * (2 * plan.slots + 4) * 4
    assert plan.cache_bytes == LAYERS * layer + ids
    assert plan.temporary_bytes < layer / 4
    assert plan.bytes_per_device == plan.cache_bytes + plan.parameter_bytes + plan.temporary_bytes
    # A query's output and log-sum-exp of each head: a maximum of one number, a sum of 128 + 1.
    combined = LAYERS * 3 * 2 * (1 + 129) * 4
    assert plan.sent == Sent(combination=combined * 2 * 3 // 4, combinations_per_layer=2.0, tensor=0, other=0)
    assert plan.read_bytes < plan.parameter_bytes + plan.cache_bytes
    assert plan.seconds_bound == pytest.approx(plan.read_bytes / bandwidth) and plan.bound_by == "HBM"
    assert to_decode_table(plan, "title").row_count == 12


def test_heads_over_tensor_and_environments_over_data():
    plan = plan_decode(small(mesh={"data": 2, "tensor": 2}), "v5e:2x2", environments=2, context=5000)
    assert plan.fits and plan.mesh["seq"] == 1 and plan.mesh_note is None and plan.cache_dtype == "float32"
    assert plan.sent is not None and plan.sent.combination == 0 < plan.sent.tensor
    assert 0 < plan.sent.other <= 16  # a row's raw outputs: every process acts in all environments
    assert plan.cache_bytes == LAYERS * 2 * plan.slots * LANES // 2 * 4 + (2 * plan.slots + 1) * 4


def test_too_much():
    plan = plan_decode(small(), "v5e:1x1", context=2**25)
    assert not plan.fits and plan.reason is not None and plan.sent is None and plan.seconds_bound is None
    assert plan.bytes_per_device > plan.hbm_bytes
    assert to_decode_table(plan, "title").row_count == 9


def test_the_longest_cache():
    lines = []
    found = find_max_cache(
        small(), "v5e:1x1", context=2**21, cache_dtype="int8", precision=0.5, on_attempt=lines.append
    )
    assert found.plan is not None and found.plan.fits and found.plan.context_tokens == found.max_context
    assert found.max_context < found.too_long <= 1.5 * found.max_context
    assert found.plan.bytes_per_device <= found.plan.hbm_bytes < 1.6 * found.plan.bytes_per_device
    assert found.attempts == lines and len(lines) <= 6
    assert {"max_context", "too_long", "plan", "attempts"} <= set(json.loads(json.dumps(found, default=asdict)))
    assert to_max_cache_table(found, "title").row_count == 12


@pytest.mark.parametrize(
    "config, options, message",
    [
        (small(mesh={"data": 2}), {}, "1 environments do not divide over data x fsdp = 2: choose a multiple of 2"),
        (small(), {"environments": 0}, "0 environments"),
        (small(), {"context": 0}, "a context of 0 tokens: give 1 or more"),
        (small(agent={"name": "language_model"}), {}, "language_model: this agent cannot act"),
        (small(agent={"name": "td3"}), {}, "td3: this agent has no sequence model"),
    ],
)
def test_what_cannot_be_planned(config, options, message):
    with pytest.raises(UserError, match=message):
        plan_decode(config, "v5e:2x2", **options)


@pytest.mark.usefixtures("standard_promotion")
def test_the_verb(capsys):
    PlanVerb("exorl_at_350m", ("model.layers=1",), "v5e:2x2", decode=True, envs=2, context=4096, json=True).run()
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["environments"] == 2 and plan["context_tokens"] == 4096
    assert plan["sent"]["other"] == 0
