"""benchmarks/activations.py: how a layer's measured memory grows under each scheme of the paper's Table 1."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import jax
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "activations.py"


@pytest.fixture(scope="module")
def measured():
    """(scheme, length, ring) -> bytes of temporaries on one device, for a layer of width 64."""
    spec = importlib.util.spec_from_file_location("benchmark_activations", PATH)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def measure(scheme: str, length: int, ring: int = 1) -> int:
        case = module.Case(scheme, length, width=64, heads=2, feed_forward_block=64, ring=ring)
        with jax.numpy_dtype_promotion("standard"):  # flax's norm promotes bfloat16 itself
            return module.temporaries(case, jax.devices())

    yield cache(measure)
    del sys.modules[spec.name]


def test_scores_in_memory_grow_with_the_square(measured):
    assert measured("vanilla", 2048) > 3.5 * measured("vanilla", 1024)


@pytest.mark.parametrize("scheme", ["memory_efficient", "blockwise"])
def test_blocks_grow_with_the_length(measured, scheme):
    short, long = measured(scheme, 2048), measured(scheme, 8192)
    assert 3 * short < long < 4.4 * short
    assert measured(scheme, 2048) < 0.2 * measured("vanilla", 2048)


def test_a_blockwise_feed_forward_needs_less(measured):
    assert measured("blockwise", 8192) < 0.7 * measured("memory_efficient", 8192)


def test_a_device_of_the_ring_needs_what_its_own_tokens_need(measured):
    assert measured("ring", 8192, 8) < 1.1 * measured("ring", 4096, 4)
    assert measured("ring", 8192, 8) < 0.4 * measured("blockwise", 8192)
