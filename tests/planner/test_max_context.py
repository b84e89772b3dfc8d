"""The search for the longest row, on a compiler that is a straight line; and once on the real one."""

import json
from dataclasses import asdict, fields
from functools import partial
from types import SimpleNamespace

import jax
import pytest

from ringrl.errors import UserError
from ringrl.planner import CompiledPlan, CompilerError, find_max_context, longest_context
from ringrl.planner.plan_table import attempt_line, to_max_context_table
from tests.builders import PLANNED, make_config
from tests.planner.compilers import needs_libtpu

HBM = 1_000_000


small = partial(
    make_config,
    PLANNED
    | {
        "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 2, "compute_dtype": "bfloat16"},
        "training": {"steps": 10, "batch": 1, "row_steps": 4096},
    },
)


@pytest.fixture
def compiler(monkeypatch):
    """A compiler whose programs take `fixed` + `slope` x tokens bytes; `fails` may raise instead."""
    line = SimpleNamespace(fixed=100_000, slope=2.0, host=None, fails=lambda tokens: None, tried=[])

    def plan(config, topology):
        tokens = config.training.row_steps
        line.tried.append(tokens)
        line.fails(tokens)
        size = round(line.fixed + line.slope * tokens)
        facts = {field.name: None for field in fields(CompiledPlan)}
        facts |= {"topology": topology, "device_kind": "TPU v5 lite", "devices": 8, "mesh": {"seq": 8}}
        facts |= {"tokens": tokens, "row_tokens": tokens, "bytes_per_device": size, "hbm_bytes": HBM}
        facts |= {"argument_bytes": 0, "temporary_bytes": size, "host_bytes_per_device": tokens, "parameters": 7}
        facts |= {
            "host_bytes_available": line.host,
            "memory": {"other": size},
            "largest": [],
            "model_flops": 1.0,
            "compile_seconds": 0.0,
        }
        return CompiledPlan(**facts | {"fits": size <= HBM, "reason": None if size <= HBM else "too much"})

    monkeypatch.setattr(longest_context, "plan_training_step", plan)
    monkeypatch.setattr(longest_context, "find_devices", lambda topology: list(range(8)))
    return line


@pytest.mark.parametrize("start", [16, 4096, 65536, 450_000, 2_000_000])
@pytest.mark.parametrize("slope", [0.3, 2.0, 40.0])
def test_the_longest_row_is_found_in_few_compilations(compiler, start, slope):
    compiler.slope = slope
    found = find_max_context(small(), "v5e:2x4", start=start)
    longest = (HBM - compiler.fixed) / slope
    unit = 16 * 1024
    assert found.max_context <= longest < found.too_long
    assert found.too_long - found.max_context <= max(found.max_context / 8, unit)
    assert found.max_context % 16 == 0 and (found.max_context < unit or found.max_context % unit == 0)
    assert len(compiler.tried) == len(set(compiler.tried)) <= (8 if start > 16 else 10)


def test_precision_decides_how_long_it_goes_on(compiler):
    rough = find_max_context(small(), "v5e:2x4", precision=1.0)
    fine = find_max_context(small(), "v5e:2x4", precision=0.05)
    assert fine.too_long - fine.max_context <= 0.05 * fine.max_context
    assert len(rough.attempts) <= len(fine.attempts)
    with pytest.raises(UserError, match="precision 0"):
        find_max_context(small(), "v5e:2x4", precision=0.0)


def test_nothing_fits(compiler):
    compiler.fixed = 2 * HBM
    found = find_max_context(small(), "v5e:2x4")
    assert found.max_context == 0 and found.too_long == 16 and found.plan is None
    assert to_max_context_table(found, "title").row_count == 3


def test_another_error_of_the_compiler_counts_as_too_long(compiler):
    def fails(tokens):
        if tokens > 100_000:
            raise CompilerError("the TPU compiler failed: it is tired")

    compiler.fails = fails
    seen = []
    found = find_max_context(small(), "v5e:2x4", on_attempt=seen.append)
    assert 100_000 / 1.125 - 16384 <= found.max_context <= 100_000 < found.too_long
    assert seen == found.attempts and any(a.reason and "tired" in a.reason for a in seen)
    assert "tired" in attempt_line(next(a for a in seen if a.reason))


def test_a_host_can_be_full_too(compiler):
    compiler.host = 200_000
    found = find_max_context(small(), "v5e:2x4")
    assert found.max_context <= 200_000 < found.too_long <= 1.125 * found.max_context
    assert len(compiler.tried) <= 8
    assert any(a.reason and "of a host that has 200,000" in a.reason for a in found.attempts)


def test_the_mesh_is_fitted_once_and_rows_divide_over_it(compiler):
    find_max_context(
        small(training={"row_steps": 60}, mesh={"heads": 2}), "v5e:2x4"
    )  # seq 4, zigzag, two devices a station
    assert all(tokens % 16 == 0 for tokens in compiler.tried)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_with_the_real_compiler():
    config = small(training={"row_steps": 2**23}, model={"layers": 2, "block": 1024})
    with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to an int32 power
        found = find_max_context(config, "v5e:1x1", precision=1.0)
    assert found.max_context >= 2**20 and found.plan.fits
    assert found.bytes_per_device <= found.hbm_bytes < 1.01 * 15.75 * 2**30
    assert found.too_long is not None and found.too_long <= 2 * found.max_context
    answer = json.loads(json.dumps(found, default=asdict))
    keys = {"max_context", "tokens", "attempts", "bytes_per_device", "host_bytes_per_device", "hbm_bytes"}
    assert keys <= set(answer)
