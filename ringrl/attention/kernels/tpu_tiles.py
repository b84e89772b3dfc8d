"""How long the blocks of the TPU kernels are: chosen by what a shard costs, among those that fit vector memory."""

import functools

from ringrl.attention.kernels.tpu_blocks import LANES

_LONGEST = 1280
"""Of a block's sides."""

_VECTOR_MEMORY = 13.5 * 2**20
"""Bytes that a kernel may need by `backward_bytes`: of the 16 MiB that a program may use where it asks for no more."""

_STEP = 2**16
"""What a step of the grid costs beside its products, in pairs of tokens: 0.4 us of a v5e. Assumed, not measured."""


@functools.cache
def choose_blocks(queries: int, keys: int, head_dim: int, itemsize: int) -> tuple[int, int]:
    """(block_q, block_k) of which a causal run costs least, its last query seeing all keys.

    Cost is the pairs of tokens in the blocks that are computed, padding and what is hidden in them included, and
    `_STEP` for each block. So a run that 512 and 1,024 do not divide takes blocks that do.

    Args:
        queries: in a run of tokens whose positions grow by a constant step.
        keys: the same.
        head_dim: features a head, to 256.
        itemsize: bytes a number of q, k and v: 2 or 4.
    """
    sides = range(LANES, _LONGEST + 1, LANES)
    pairs = [(q, k) for q in sides for k in sides if backward_bytes(q, k, head_dim, itemsize) <= _VECTOR_MEMORY]
    return min(pairs, key=lambda pair: (_cost(queries, keys, *pair), -pair[1]))


def _cost(queries: int, keys: int, block_q: int, block_k: int) -> int:
    ends = (min(end, queries) + keys - queries for end in range(block_q, queries + block_q, block_q))
    return sum(max(-(-end // block_k), 0) for end in ends) * (block_q * block_k + _STEP)


def backward_bytes(block_q: int, block_k: int, head_dim: int, itemsize: int) -> int:
    """Vector memory of the backward kernel, which needs most: what libtpu 0.0.42 takes for a v5e, to 2 MiB.

    Two of each block that passes, the sums in float32, ids as columns, and the weights and their gradient. Products of
    float32 are made of bfloat16's, and need the parts of their operands.
    """
    width = max(head_dim, LANES)
    q_bytes = block_q * (width * (2 * 2 * itemsize + 2 * 4) + 4 * 2 * 8 * 4)
    k_bytes = block_k * (width * (2 * 2 * itemsize + (2 * 2 + 2) * 4) + 2 * LANES * 4 + 2 * 2 * 8 * 4)
    parts = width * (block_q + block_k) * 20 + block_q * block_k * 2 if itemsize == 4 else 0
    return q_bytes + k_bytes + 2 * block_q * block_k * itemsize + parts
