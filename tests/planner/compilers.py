"""Where the real compilers are not installed, their tests are skipped, and say what to install."""

import importlib.util

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is not installed: pip install "ringrl[plan]"'
)
needs_cuda_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason='the CUDA compiler is not installed: pip install "ringrl[plan-gpu]"',
)
