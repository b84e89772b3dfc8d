"""How large the tiles of the GPU kernels are."""

from typing import NamedTuple

BLOCK = 128
"""Runs of tokens are padded to multiples of this, which every tile divides."""


class Tile(NamedTuple):
    """What one program of a kernel's grid computes at once, and how Triton compiles it."""

    queries: int
    keys: int
    warps: int
    stages: int = 2  # of the loop over tiles: 2 fetches the next one while one is computed


class Tiles(NamedTuple):
    """The tiles of the three kernels; their sides are powers of two from 16 to `BLOCK`."""

    forward: Tile
    dq: Tile
    dkv: Tile


# Longest head -> tiles, with which no register spills on an A100, an H100 or a B200, by what their compiler says
# (tests/attention/test_gpu_compiled.py). A few others were tried; none was timed.
_HALF = {  # 16-bit numbers
    32: Tiles(Tile(128, 64, 4), Tile(64, 64, 4), Tile(64, 64, 8)),
    64: Tiles(Tile(128, 64, 4), Tile(64, 64, 4), Tile(32, 64, 8)),
    128: Tiles(Tile(128, 64, 8), Tile(64, 64, 4), Tile(64, 64, 8)),
    256: Tiles(Tile(64, 64, 8), Tile(32, 64, 8), Tile(32, 32, 8)),
}
_FLOAT = {  # float32, which matrix units do not take whole
    32: Tiles(Tile(64, 32, 8), Tile(64, 32, 4), Tile(32, 32, 4, 1)),
    64: Tiles(Tile(64, 32, 8), Tile(64, 32, 8), Tile(16, 32, 4)),
    128: Tiles(Tile(32, 16, 8), Tile(32, 16, 8), Tile(32, 32, 8, 1)),
    256: Tiles(Tile(32, 16, 8), Tile(32, 16, 8, 1), Tile(16, 16, 8)),
}


def choose_tiles(head_dim: int, itemsize: int) -> Tiles:
    """Tiles that fit into a GPU's registers and shared memory.

    Args:
        head_dim: features a head, to 256.
        itemsize: bytes a number of q, k and v: 2 or 4.
    """
    table = _HALF if itemsize == 2 else _FLOAT
    return table[min(longest for longest in table if head_dim <= longest)]
