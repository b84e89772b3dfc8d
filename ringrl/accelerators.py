"""Accelerators' peak figures, by JAX's names of the devices: published by their makers, none measured here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts them: a chip, or one of its two cores (TPU v2, v3 and 7x) with half its figures."""

    flops: float  # dense bfloat16, 1/s
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # of one link, one way, bytes/s: all that one hop of a ring uses
    links: int  # of a device, to all its neighbours
    host_bytes: float | None = None  # a device's share of the memory of the host that it is rented with
    network_bandwidth: float | None = None  # to devices of other hosts, one way, bytes/s; None: links lead there too


# TPU v2 to v4: peak and HBM from Cloud TPU's pages of each version; links from Austin et al., How to Scale Your Model
# (2025), chapter 2. v5p, v6e and 7x: the table on Cloud TPU's page of TPU7x, v5e its own page; links as before, 7x: the
# page's 1200 GB/s both ways over six links. Host memory: the same pages, RAM of a 4-chip VM over its devices (v3
# 340 GB and v4 400 GB: not looked up again).
_TPUS = {
    "TPU v2": Accelerator(22.5e12, 350e9, 62.5e9, 4),
    "TPU v3": Accelerator(61.5e12, 450e9, 100e9, 4, host_bytes=42.5e9),
    "TPU v4": Accelerator(275e12, 1200e9, 45e9, 6, host_bytes=100e9),
    "TPU v5 lite": Accelerator(197e12, 819e9, 45e9, 4, host_bytes=48e9),
    "TPU v5": Accelerator(459e12, 2765e9, 90e9, 6, host_bytes=112e9),
    "TPU v6 lite": Accelerator(918e12, 1638e9, 90e9, 4, host_bytes=180e9),
    "TPU7x": Accelerator(1153.5e12, 3690e9, 100e9, 6, host_bytes=120e9),
}
_TPUS |= {"TPU v5e": _TPUS["TPU v5 lite"], "TPU v5p": _TPUS["TPU v5"], "TPU v6e": _TPUS["TPU v6 lite"]}

# NVIDIA's data sheets: tensor core bfloat16 without sparsity; NVLink one way, all links together, for they lead to a
# switch; between hosts the InfiniBand port that DGX systems have for each GPU (A100: 200 Gbit/s, later ones 400).
# Part of a device's name -> figures; the first that is found counts.
_GPUS = {
    "A100-SXM4-40GB": Accelerator(312e12, 1555e9, 300e9, 1, network_bandwidth=25e9),
    "A100": Accelerator(312e12, 2039e9, 300e9, 1, network_bandwidth=25e9),
    "H100 PCIe": Accelerator(756e12, 2000e9, 300e9, 1, network_bandwidth=50e9),
    "H100": Accelerator(989.4e12, 3350e9, 450e9, 1, network_bandwidth=50e9),
    "H200": Accelerator(989.4e12, 4800e9, 450e9, 1, network_bandwidth=50e9),
    "B200": Accelerator(2250e12, 8000e9, 900e9, 1, network_bandwidth=50e9),
}


def find_accelerator(device_kind: str) -> Accelerator | None:
    """The figures of `jax.Device.device_kind`, such as `TPU v5 lite` or `NVIDIA H100 80GB HBM3`; None where unknown."""
    if device_kind in _TPUS:
        return _TPUS[device_kind]
    return next((figures for part, figures in _GPUS.items() if part in device_kind), None)
