"""Names of GPUs, and what XLA's CUDA compiler says of them."""

import importlib.util

import pytest

from ringrl.accelerators import find_accelerator
from ringrl.errors import UserError
from ringrl.planner.gpu_topology import known_gpus
from ringrl.planner.topology import device_hbm_bytes, find_devices
from tests.planner.compilers import needs_cuda_compiler


@pytest.mark.parametrize("name", ["h100", "h100:", "h100:x8", "h100:2x", "h100:2x2x2", "h100:eight"])
def test_a_malformed_name(name):
    with pytest.raises(UserError, match="write a GPU, and hosts x GPUs, for example h100:8"):
        find_devices(name)


@pytest.mark.parametrize("name", ["h100:0", "h100:0x8", "h100:9", "a100:2x16", "gb200:73"])
def test_hosts_that_there_are_not(name):
    with pytest.raises(UserError, match=f"{name} does not exist: NVLink joins 1 to (8|72) "):
        find_devices(name)


def test_more_gpus_than_a_host_has_are_written_as_hosts():
    with pytest.raises(UserError, match="write 4x8 for 32"):
        find_devices("h100:32")


def test_an_unknown_name_lists_both():
    with pytest.raises(UserError, match=r"no TPU or GPU is called 'v100' \(known: v2, .*, h100, .*for example v5e:2x4"):
        find_devices("v100:8")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "ringrl\[plan-gpu\]"'):
        find_devices("h100:8")


@needs_cuda_compiler
@pytest.mark.parametrize("name", known_gpus())
def test_every_gpu_has_published_figures_and_memory(name):
    device = find_devices(f"{name}:1")[0]
    figures = find_accelerator(device.device_kind)
    assert device.platform == "gpu" and figures is not None
    sold = {"a100": 80, "a100_40gb": 40, "h100": 80, "h200": 141, "b200": 180, "gb200": 180}[name]
    assert 0.95 * sold < device_hbm_bytes(device) / 0.8 / 1e9 < 1.1 * sold
    assert figures.network_bandwidth is not None and figures.network_bandwidth < figures.link_bandwidth


@needs_cuda_compiler
def test_hosts_and_their_gpus():
    devices = find_devices("h100:4x8")
    assert [device.process_index for device in devices] == [host for host in range(4) for _ in range(8)]
    assert len(find_devices("gb200:72")) == len(find_devices("gb200:1x72")) == 72
