"""What layouts cost on packed rows. That the counts are those of the local step: test_ring.py."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ringrl.attention.balance import choose_layout, ring_work
from ringrl.attention.kernels import hardware_steps, make_sizes

SHARD = 32768


def test_many_short_segments_are_no_worse_than_in_whole_chunks():
    segments = np.concatenate([np.repeat(np.arange(1, 66), 4000), np.zeros(8 * SHARD - 65 * 4000, int)])[None]
    best = choose_layout(segments, 8, unit=4, blocks=(512, 256))[0]
    least = ring_work(segments, 8, "contiguous", 1, (512, 256)).computed  # blocks that reach over two segments
    assert best.cost <= 1.06 * least
    assert ring_work(segments, 8, "striped", 1, (512, 256)).critical > 2.5 * least


def test_the_blocks_that_are_counted_for_the_native_kernel_are_those_of_its_source():
    source = "".join(path.read_text() for path in Path(hardware_steps.__file__).parent.glob("native_[ft]*.h"))
    found = {name: int(size) for name, size in re.findall(r"constexpr \w+ (kPanel|kBlock) = (\d+);", source)}
    x = jnp.zeros((1, 8, 2, 4))
    step = hardware_steps.NativeStep(make_sizes(x, x, scale=None, block_q=8, block_k=8))
    assert step.blocks == (found["kPanel"], found["kBlock"])


def test_a_row_must_divide_over_the_ring_in_whole_steps():
    with pytest.raises(ValueError, match="40 tokens in steps of 4 do not divide over a ring of 4"):
        choose_layout(np.ones((1, 40), int), 4, unit=4, blocks=(8, 8))
