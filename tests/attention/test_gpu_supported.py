"""Where the step on NVIDIA GPUs can be taken, and the reason where it cannot."""

import jax
import jax.numpy as jnp
import pytest

from ringrl.attention.kernels import gpu


def shape(*sizes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of compute capability 9.0 with cuDNN 9.11, for JAX's own checks."""
    meets = lambda capability: float(capability) <= 9.0  # noqa: E731
    monkeypatch.setattr(gpu.cudnn, "check_compute_capability", meets)
    monkeypatch.setattr(gpu.cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    monkeypatch.setattr(gpu.cudnn, "check_cudnn_version", lambda: 91100)


@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_what_is_supported(hopper, head_dim):
    assert gpu.supported(shape(1, 64, 8, head_dim), shape(1, 64, 2, head_dim), False) is None
    assert gpu.supported(half := shape(1, 64, 8, head_dim, dtype=jnp.float16), half, False) is None


@pytest.mark.parametrize(
    "q, segmented, reason",
    [
        (shape(1, 64, 8, 64), True, "segment ids"),
        (shape(1, 64, 8, 64, dtype=jnp.float32), False, "not float32"),
        (shape(1, 64, 8, 36), False, "multiple of 8"),
        (shape(1, 64, 8, 512), False, "head dim must be <= 256"),
    ],
)
def test_what_is_not_supported_is_said(hopper, q, segmented, reason):
    assert reason in gpu.supported(q, q, segmented)


def test_a_missing_gpu_is_said(monkeypatch, hopper):
    q = shape(1, 64, 8, 256)
    monkeypatch.setattr(gpu.cudnn, "check_compute_capability", lambda capability: False)
    assert "needs an NVIDIA GPU" in gpu.supported(q, q, False)
    monkeypatch.setattr(gpu.cudnn, "check_compute_capability", lambda capability: True)
    assert "128 on Blackwell, not 256" in gpu.supported(q, q, False)
    monkeypatch.delattr(gpu.cudnn, "_dot_product_attention_bwd_p_wrapper")
    assert "JAX has no _dot_product_attention_bwd_p_wrapper" in gpu.supported(q, q, False)


def test_a_missing_cudnn_is_said(monkeypatch, hopper):
    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(gpu.cudnn, "check_cudnn_version", missing)
    assert gpu.supported(q := shape(1, 64, 8, 64), q, False) == "cuDNN's fused attention: cuDNN is not detected."
