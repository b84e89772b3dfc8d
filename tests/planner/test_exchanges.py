"""The ways over the mesh compared by what the TPU compiler makes of each."""

import json
from dataclasses import asdict

import pytest

from ringrl.errors import UserError
from ringrl.planner.exchanges import plan_exchanges, to_table
from tests.builders import PLANNED, make_config
from tests.planner.compilers import needs_libtpu


def wide(data=1, row_steps=8192):
    """One wide layer on a mesh of `data` devices, a row a device."""
    model = {"layers": 1, "width": 512, "heads": 4, "kv_heads": 2, "compute_dtype": "bfloat16"}
    training = {"batch": data, "row_steps": row_steps}
    return make_config(PLANNED, model=model, training=training, mesh={"data": data})


@pytest.mark.slow
@needs_libtpu
def test_what_each_way_sends():
    plans = {(p.exchange, p.seq, p.heads): p for p in plan_exchanges(wide(data=2), "v5e:2x4")}
    assert set(plans) == {("ring", 4, 1), ("all_gather", 4, 1), ("ring", 2, 2), ("ring", 1, 4)}
    assert all(plan.fits for plan in plans.values())
    # One row a device, 2048 tokens of 2 key heads of 128 numbers: keys and values go 3 hops forward and 3 backward in
    # bfloat16, their gradients 4 in float32.
    keys = 2048 * 2 * 128 * 2
    ring = plans["ring", 4, 1]
    assert ring.sent_bytes == 6 * 2 * keys + 4 * 2 * 2 * keys
    assert ring.waited_bytes == 0 and ring.estimate_ms == max(ring.computing_ms, ring.sending_ms)
    gathered = plans["all_gather", 4, 1]
    assert gathered.sent_bytes >= 3 * 2 * keys + 3 * 2 * 2 * keys  # keys to all, and their float32 gradients back
    # Exchanging heads sends each of q, k, v and the output once each way and again backward, and waits for it.
    assert plans["ring", 1, 4].waited_bytes == plans["ring", 1, 4].sent_bytes < ring.sent_bytes


@needs_libtpu
def test_the_best_comes_first_and_both_forms_say_the_same():
    plans = plan_exchanges(wide(data=4), "v5e:2x4")
    estimates = [plan.estimate_ms for plan in plans]
    assert estimates == sorted(estimates)
    assert [row["heads"] for row in json.loads(json.dumps(plans, default=asdict))] == [plan.heads for plan in plans]
    assert to_table(plans, "title").row_count == len(plans)


@needs_libtpu
def test_a_slice_without_devices_for_the_sequence():
    with pytest.raises(UserError, match="v5e:1x1 has 1 devices, of which data x fsdp x tensor = 1 must leave some"):
        plan_exchanges(wide(), "v5e:1x1")


@pytest.mark.slow
@needs_libtpu
def test_rows_that_do_not_divide():
    # Zigzag over 8 needs a multiple of 16 steps; groups that exchange heads over less.
    ways = {(p.exchange, p.seq, p.heads) for p in plan_exchanges(wide(row_steps=4104), "v5e:2x4")}
    assert ways == {("ring", 4, 2), ("ring", 2, 4)}
    with pytest.raises(UserError, match="training.row_steps 4100 divides over 8 devices in no way"):
        plan_exchanges(wide(row_steps=4100), "v5e:2x4")
