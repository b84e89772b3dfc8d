"""The roofline: what a step cannot be faster than."""

import pytest

from ringrl.accelerators import Accelerator
from ringrl.planner.bound import Traffic, mfu_bound, read_traffic
from ringrl.planner.schedule import Transfer

CHIP = Accelerator(flops=100.0, hbm_bandwidth=10.0, link_bandwidth=5.0, links=4)
QUIET = Traffic(0, 0, 0, 0)


def bound(traffic=QUIET, hbm_bytes=0.0):
    return mfu_bound(CHIP, useful=600.0, executed=800.0, traffic=traffic, hbm_bytes=hbm_bytes)


def test_what_sets_the_bound():
    assert bound() == (0.75, "computation")  # 8 s of computation for 6 s of useful work
    assert bound(Traffic(50, 0, 0, 0)) == (0.6, "the ring's transfers")  # 50 bytes on one link: 10 s
    assert bound(Traffic(0, 0, 200, 0)) == (0.6, "other transfers")  # 200 bytes on four: 10 s
    assert bound(hbm_bytes=120.0) == (0.5, "HBM")
    waited, by = bound(Traffic(10, 10, 0, 0))  # 2 s that nothing hides
    assert waited == pytest.approx(0.6) and by == "computation and the transfers it waits for"


def test_traffic_is_the_rings_or_other():
    ring = Transfer("a", "collective-permute", 3, 10, ("work",), "jit(f)/shard_map/ppermute")
    exposed = Transfer("b", "collective-permute", 2, 5, (), "jit(f)/shard_map/ppermute")
    gathered = Transfer("c", "all-gather", 7, 1, (), "jit(f)/shard_map/all_gather")
    assert read_traffic([ring, exposed, gathered]) == Traffic(40, 10, 7, 7)
