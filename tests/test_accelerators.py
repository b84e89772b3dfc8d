"""What accelerators can do at best, by the names that JAX gives them."""

import jax
import pytest

from ringrl.accelerators import find_accelerator
from ringrl.training.tracker import peak_flops


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v3", 61.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA B200", 2250),
    ],
)
def test_peaks(kind, teraflops):
    found = find_accelerator(kind)
    assert found is not None and found.flops == teraflops * 1e12


def test_what_nothing_is_published_of_is_measured(monkeypatch):
    assert find_accelerator("cpu") is None
    flops, measured = peak_flops.__wrapped__()
    assert measured and 1e8 < flops < 1e15
    monkeypatch.setattr(jax, "devices", lambda: [type("Device", (), {"device_kind": "NVIDIA H200"})()])
    assert peak_flops.__wrapped__() == (989.4e12, False)
