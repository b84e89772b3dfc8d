"""Rings laid on the links of a slice of TPUs."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringrl.training.torus import closed_path, lay_out, snake


@dataclass(frozen=True)
class Chip:
    coords: tuple
    core_on_chip: int = 0


def chips(*box, cores=1):
    return [Chip(tuple(map(int, at)), core) for at in np.ndindex(*box) for core in range(cores)]


def distance(a, b):
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_snake_goes_through_every_cell_from_neighbour_to_neighbour(box):
    cells = snake(tuple(box))
    assert len(set(cells)) == len(cells) == math.prod(box)
    assert all(distance(a, b) == 1 for a, b in zip(cells, cells[1:], strict=False))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_a_closed_path_comes_back_to_where_it_began(box):
    cells = closed_path(tuple(box))
    possible = math.prod(box) <= 2 or (math.prod(box) % 2 == 0 and sum(size > 1 for size in box) >= 2)
    assert (cells is not None) == possible
    if cells is not None:
        assert len(set(cells)) == len(cells) == math.prod(box)
        assert all(distance(a, b) <= 1 for a, b in zip(cells, cells[1:] + cells[:1], strict=True))


@pytest.mark.parametrize(
    ("box", "cores", "outer", "ring", "inner"),
    [
        ((4, 8, 1), 1, 1, 32, 1),
        ((16, 16, 1), 1, 4, 64, 1),
        ((8, 8, 8), 1, 1, 512, 1),
        ((4, 4, 1), 2, 1, 32, 1),
        ((4, 4, 4), 1, 2, 8, 4),
    ],
    ids=str,
)
def test_stations_of_a_ring_are_neighbours(box, cores, outer, ring, inner):
    laid = lay_out(chips(*box, cores=cores), outer, ring, inner)
    assert laid.shape == (outer, ring, inner) and len(set(laid.flat)) == laid.size
    for group in laid:
        for here, there in zip(group, np.roll(group, -1, axis=0), strict=True):
            hops = [
                distance((*a.coords, a.core_on_chip), (*b.coords, b.core_on_chip))
                for a, b in zip(here, there, strict=True)
            ]
            # Every device of a station sends as far: one hop, or the length of the station's box.
            assert max(hops) <= (1 if inner == 1 else inner)


def test_devices_without_a_place_or_a_path_are_left_to_jax():
    assert lay_out([object()] * 4, 1, 4, 1) is None
    assert lay_out(chips(8, 1, 1), 1, 8, 1) is None  # a line
    assert lay_out(chips(3, 3, 1), 1, 9, 1) is None  # an odd number
    assert lay_out(chips(2, 2, 1)[:3], 1, 3, 1) is None  # no box
