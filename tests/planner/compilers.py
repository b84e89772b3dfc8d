"""The real compilers of TPUs and GPUs: where they are not installed, their tests say so and are skipped."""

import importlib.util
from contextlib import contextmanager

import jax
import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed: pip install "ringrl[plan]"'
)
needs_cuda_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason='the CUDA compiler is not installed: pip install "ringrl[plan-gpu]"',
)


@contextmanager
def optimised():
    """Programs are compiled as for users; `tests/conftest.py` has most compiled quickly, which may spill registers."""
    quickly = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quickly)
