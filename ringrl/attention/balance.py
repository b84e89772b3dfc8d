"""How evenly a ring's layouts share out packed rows: blocks counted on the rows, before anything is compiled.

A local step leaves out blocks in which causality or segments hide everything. A hop takes as long as the busiest
device, so a pass costs the sum over hops of the busiest device's blocks (`RingWork.critical`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

from ringrl.attention.layout import Layout, runs_per_shard, to_ring_order

_CLOSE = 1.01
"""Costs that differ by less are equal: then a layout is taken that reads longer stretches of episodes."""


@dataclass(frozen=True)
class RingWork:
    """Pairs of tokens that a ring computes in a forward pass, over those that see each other, for a device.

    Attributes:
        critical: the sum over hops of the busiest device's pairs, over an even share of the visible ones; 1 is ideal.
        computed: all devices' pairs over the visible ones.
    """

    critical: float
    computed: float


@dataclass(frozen=True)
class RingLayout:
    """A layout, the tokens in each of its stripes, and what it costs (`RingWork.critical`)."""

    layout: Layout
    stripe: int
    cost: float


def ring_work(
    segments: Int[np.ndarray, "rows tokens"], size: int, layout: Layout, stripe: int, blocks: tuple[int, int]
) -> RingWork:
    """The work of causal attention to rows that are on one ring at once.

    Args:
        segments: segment ids in the order of the sequence; 0 is padding.
        size: devices on the ring.
        layout: `contiguous`, `striped` or `zigzag`.
        stripe: tokens in each stripe of `striped`.
        blocks: queries and keys in a block that is computed or left out (`LocalStep.blocks`).

    Raises:
        ValueError: the layout is unknown, or the length does not divide.
    """
    runs = runs_per_shard(size, layout)
    positions = to_ring_order(np.arange(segments.shape[1])[None], size, layout, stripe=stripe)
    pairs = np.zeros((size, size), np.int64)
    segments = segments.astype(np.int64)
    for row in segments:
        ids = to_ring_order(row[None], size, layout, stripe=stripe)
        q, k = (_blocks(positions.reshape(size, -1), ids.reshape(size, -1), runs, block) for block in blocks)
        for hop in range(size):
            pairs[:, hop] += _needed(q, _passed(k, hop)).sum(axis=(1, 2))
    lengths = np.concatenate([np.bincount(row)[1:] for row in segments])
    visible = float((lengths * (lengths + 1) // 2).sum()) or 1.0
    area = blocks[0] * blocks[1]
    return RingWork(float(pairs.max(axis=0).sum()) * area * size / visible, float(pairs.sum()) * area / visible)


def choose_layout(
    segments: Int[np.ndarray, "rows tokens"], size: int, *, unit: int, blocks: tuple[int, int]
) -> list[RingLayout]:
    """Zigzag and stripes of every width, for rows that are on one ring at once, the best first.

    Args:
        segments: segment ids in the order of the sequence; 0 is padding.
        size: devices on the ring.
        unit: tokens in an agent step, of which stripes consist: steps are not cut.
        blocks: queries and keys in a block that is computed or left out (`LocalStep.blocks`).

    Raises:
        ValueError: the tokens of a row do not divide over the ring in whole steps.
    """
    tokens = segments.shape[1]
    if tokens % (size * unit):
        raise ValueError(f"{tokens} tokens in steps of {unit} do not divide over a ring of {size}")
    found = [
        RingLayout(layout, stripe, ring_work(segments, size, layout, stripe, blocks).critical)
        for layout, stripe in _candidates(tokens // size, size, unit)
    ]
    best = min(each.cost for each in found)
    close = [each for each in found if each.cost <= _CLOSE * best]
    return close + sorted((each for each in found if each.cost > _CLOSE * best), key=lambda each: each.cost)


def _candidates(shard: int, size: int, unit: int) -> Iterator[tuple[Layout, int]]:
    """Those with the longest stretches of neighbouring tokens first; stripes that fill a shard would be contiguous."""
    steps = shard // unit
    if size > 1 and steps % 2 == 0:
        yield "zigzag", 1
    widths = [steps // n for n in range(2, steps + 1) if steps % n == 0] or [1]
    for width in widths:
        yield "striped", width * unit


@dataclass(frozen=True)
class _BlockRanges:
    """Lowest and highest position and segment id of every device's blocks, [devices, blocks]; padding has none."""

    first: Int64[np.ndarray, "devices blocks"]
    last: Int64[np.ndarray, "devices blocks"]
    low: Int64[np.ndarray, "devices blocks"]
    high: Int64[np.ndarray, "devices blocks"]


def _blocks(positions: np.ndarray, ids: np.ndarray, runs: int, block: int) -> _BlockRanges:
    """Blocks of shards [devices, tokens], none of which spans two runs."""
    run = positions.shape[1] // runs
    starts = np.add.outer(np.arange(runs) * run, np.arange(0, run, block)).reshape(-1)
    cut = lambda reduce, x: reduce.reduceat(x, starts, axis=1)  # noqa: E731
    none = np.iinfo(np.int64).max
    seen = ids != 0
    return _BlockRanges(
        first=cut(np.minimum, np.where(seen, positions, none)),
        last=cut(np.maximum, np.where(seen, positions, -1)),
        low=cut(np.minimum, np.where(seen, ids, none)),
        high=cut(np.maximum, np.where(seen, ids, -1)),
    )


def _passed(k: _BlockRanges, hop: int) -> _BlockRanges:
    """The keys that each device has at a hop."""
    return _BlockRanges(*(np.roll(x, hop, axis=0) for x in (k.first, k.last, k.low, k.high)))


def _needed(q: _BlockRanges, k: _BlockRanges) -> Bool[np.ndarray, "devices q_blocks k_blocks"]:
    """Pairs of blocks in which something may be visible, as kernels decide it."""
    causal = q.last[:, :, None] >= k.first[:, None, :]
    return causal & (q.low[:, :, None] <= k.high[:, None, :]) & (k.low[:, None, :] <= q.high[:, :, None])
