"""Names of slices, and what libtpu says of them."""

import importlib.util

import pytest

from ringrl.errors import UserError
from ringrl.planner.topology import device_hbm_bytes, find_devices
from ringrl.planner.tpu_topology import bytes_in
from tests.planner.compilers import needs_libtpu


@pytest.mark.parametrize("name", ["v5e", "v5litepod-8", "v5e:", "v5e:2x", "2x4", ""])
def test_a_malformed_name(name):
    with pytest.raises(UserError, match="write generation:chips, for example v5e:2x4"):
        find_devices(name)


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:32x32", "v5e:2x2x2", "v5e:0x4", "v3:1x1"])
def test_a_rectangle_that_no_slice_has(name):
    with pytest.raises(UserError, match=f"{name} does not exist; .* has .*16x16"):
        find_devices(name)


@pytest.mark.parametrize("name", ["v4:3x3x3", "v4:8x4x4", "v4:4x4", "v4:16x16x24", "v5p:16x24x24", "v4:2x2x8"])
def test_a_box_that_no_slice_has(name):
    with pytest.raises(UserError, match=f"{name} does not exist; .* such as 4x4x4"):
        find_devices(name)


def test_an_unknown_generation():
    with pytest.raises(UserError, match="no TPU or GPU is called .v9. .*for example v5e:2x4"):
        find_devices("v9:2x2")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "ringrl\[plan\]"'):
        find_devices("v5e:2x4")


@pytest.mark.parametrize(
    "message, expected",
    [("needs 15.75G", round(15.75 * 2**30)), ("needs 66.5M", round(66.5 * 2**20)), ("needs 7", 7), ("nothing", None)],
)
def test_sizes_in_messages(message, expected):
    assert bytes_in(message, r"needs ([\d.]+)([BKMGT]?)") == expected


@needs_libtpu
@pytest.mark.parametrize(
    "name, devices, gib",
    [
        ("v5e:1x1", 1, 15.75),
        ("v5e:2x4", 8, 15.75),
        ("v4:2x2x1", 4, 30.75),
        ("v5p:4x4x4", 64, 95.74),
        ("v3:4x4", 32, 15.48),
    ],
)
def test_devices_and_their_memory(name, devices, gib):
    found = find_devices(name)
    assert len(found) == devices
    assert device_hbm_bytes(found[0]) == round(gib * 2**30)
