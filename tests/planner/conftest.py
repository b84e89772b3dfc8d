"""What the planner's tests share."""

import jax
import pytest


@pytest.fixture
def standard_promotion():
    """optax's bias correction raises a Python float to an int32 power, and Flax's RMSNorm promotes bfloat16: strict
    promotion refuses both."""
    with jax.numpy_dtype_promotion("standard"):
        yield
