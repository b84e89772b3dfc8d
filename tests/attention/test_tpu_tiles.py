"""Which blocks the TPU kernels take. That they fit vector memory is asked of the compiler in test_tpu_kernel."""

import pytest

from ringrl.attention.kernels.tpu_tiles import backward_bytes, choose_blocks


@pytest.mark.parametrize(
    "run, blocks",
    [
        (1, (128, 128)),
        (200, (256, 256)),
        (1000, (512, 512)),  # half of a causal square is hidden: 3 of 4 blocks, where one block would be the whole
        (4096, (1024, 1024)),
        (12800, (640, 1280)),  # 128 trajectories of 100 fused steps: nothing is padded
    ],
)
def test_blocks_of_a_run(run, blocks):
    assert choose_blocks(run, run, 128, 2) == blocks


@pytest.mark.parametrize("head_dim, itemsize", [(64, 2), (128, 2), (256, 2), (128, 4), (256, 4)])
def test_long_runs_waste_little_and_fit(head_dim, itemsize):
    for run in (32_000, 64_000, 100_000, 65_536):
        pair = choose_blocks(run, run, head_dim, itemsize)
        assert backward_bytes(*pair, head_dim, itemsize) <= 13.5 * 2**20
        for block in pair:
            assert -run % block < 0.03 * run


def test_queries_and_keys_of_other_lengths():
    block_q, block_k = choose_blocks(128, 8192, 128, 2)
    assert block_q == 128 and block_k >= 1024
