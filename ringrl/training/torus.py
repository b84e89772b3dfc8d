"""The mesh laid on a slice of TPUs so that a ring's neighbours are neighbours on the chips' links.

JAX orders a slice of 4x8 chips row by row: the ring's hop from the end of one row to the beginning of the next crosses
the slice. XLA sends along such a ring synchronously (libtpu 0.0.42): no transfer is hidden behind computation. Here
the chips of a ring form a closed path of neighbours. Devices that share a station of the ring (`tensor`, `heads`) are
the chips of a small box, those that share nothing (`data`, `fsdp`) lie in boxes of their own.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Box = tuple[int, ...]


def lay_out(devices: Sequence[Any], outer: int, ring: int, inner: int) -> np.ndarray | None:
    """The devices as an array [outer, ring, inner]; None where they have no coordinates or no such path is found.

    Args:
        devices: all chips (or cores) of a box; of TPUs, `coords` and `core_on_chip` say where they are.
        outer: groups of devices, each with rings of its own.
        ring: stations of a ring.
        inner: devices at a station.
    """
    grid = _grid(devices)
    if grid is None:
        return None
    for splits, stations, insides in _cuts(grid.shape, outer, ring, inner):
        path = closed_path(stations)
        if path is not None:
            # [split, station, inside] of every side; then all splits, all stations and all insides together.
            sides = [size for side in zip(splits, stations, insides, strict=True) for size in side]
            parts = grid.reshape(sides).transpose([axis + 3 * side for axis in range(3) for side in range(grid.ndim)])
            parts = parts.reshape(outer, *stations, inner)
            return np.stack([parts[(slice(None), *station)] for station in path], axis=1)
    return None


def closed_path(box: Box) -> list[Box] | None:
    """A way through all cells of a box from neighbour to neighbour and back to the first; None where there is none."""
    sides = [side for side, size in enumerate(box) if size > 1]
    if math.prod(box) <= 2:
        return snake(box)
    if len(sides) < 2 or math.prod(box) % 2:
        return None  # cells are black and white in turn, so a closed path has an even number of them
    # Any way through the other sides makes the box a plane of `rows` x `columns`.
    even = next(side for side in sides if box[side] % 2 == 0)
    columns = snake(tuple(1 if side == even else size for side, size in enumerate(box)))
    rows = box[even]
    plane = [(row, column) for row in range(rows) for column in _there_and_back(len(columns), row)]
    plane += [(row, 0) for row in reversed(range(rows))]
    return [tuple(row if side == even else at for side, at in enumerate(columns[column])) for row, column in plane]


def snake(box: Box) -> list[Box]:
    """A way through all cells of a box from neighbour to neighbour."""
    if not box:
        return [()]
    rest = snake(box[1:])
    return [(first, *cell) for first in range(box[0]) for cell in (rest if first % 2 == 0 else reversed(rest))]


def _there_and_back(columns: int, row: int) -> range:
    """All columns but the first, which is kept for the way home."""
    return range(1, columns) if row % 2 == 0 else range(columns - 1, 0, -1)


def _grid(devices: Sequence[Any]) -> np.ndarray | None:
    """The devices by their coordinates; None where those are missing or do not fill a box."""
    where = [(*getattr(device, "coords", ()), getattr(device, "core_on_chip", 0)) for device in devices]
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1 or len(where[0]) < 3:
        return None
    first = np.min(where, axis=0)
    shape = tuple(np.max(where, axis=0) - first + 1)
    if math.prod(shape) != len(devices) or len(set(where)) != len(devices):
        return None
    grid = np.empty(shape, object)
    for device, at in zip(devices, where, strict=True):
        grid[tuple(np.array(at) - first)] = device
    return grid


def _cuts(shape: Box, outer: int, ring: int, inner: int) -> Iterator[tuple[Box, Box, Box]]:
    """Ways to cut every side of the box into splits x stations x insides, with these products; the best first.

    Insides are as compact as can be: the devices of a station exchange among each other, all with all.
    """
    for insides in sorted(_factors(shape, inner), key=sum):
        left = tuple(size // inside for size, inside in zip(shape, insides, strict=True))
        for splits in sorted(_factors(left, outer), key=sum):
            stations = tuple(size // split for size, split in zip(left, splits, strict=True))
            if math.prod(stations) == ring:
                yield splits, stations, insides


def _factors(shape: Box, product: int) -> list[Box]:
    """Boxes of that many cells whose sides divide those of `shape`."""
    if not shape:
        return [()] if product == 1 else []
    sides = [side for side in range(1, shape[0] + 1) if shape[0] % side == 0 and product % side == 0]
    return [(side, *rest) for side in sides for rest in _factors(shape[1:], product // side)]
