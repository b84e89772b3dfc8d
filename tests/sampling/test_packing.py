"""Several chains in a row: ten lengths that a reader can check, and what holds of any."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringrl.errors import UserError
from ringrl.sampling.packing import best_fit, one_a_row, pack_first


def contents(packing, lengths):
    """The lengths in each row, in the order of their positions."""
    rows = [[] for _ in range(int(packing.row.max()) + 1)]
    for chain in np.argsort(packing.first, kind="stable"):
        rows[packing.row[chain]].append(lengths[chain])
    return rows


def assert_sound(packing, lengths, rows, steps):
    """Chains follow one another from a row's beginning, numbered, and none reaches beyond its end."""
    assert len(packing.row) == len(lengths) and packing.row.max() < rows
    for row in range(rows):
        mine = np.flatnonzero(packing.row == row)
        mine = mine[np.argsort(packing.first[mine])]
        sizes = np.array([lengths[chain] for chain in mine], np.int64)
        np.testing.assert_array_equal(packing.first[mine], np.cumsum(sizes) - sizes)
        np.testing.assert_array_equal(packing.segment[mine], np.arange(len(mine)) + 1)
        assert sizes.sum() <= steps


def test_ten_chains_in_three_rows_of_ten():
    lengths = [2, 7, 1, 4, 5, 1, 3, 2, 3, 2]
    packing = best_fit(lengths, 3, 10)
    assert packing is not None
    # 7 opens row 0 and 5 row 1, where 4 follows; the first 3 fills row 0, the second opens row 2; three 2s follow it;
    # then a 1 fills row 1, which has the least room, and the last one row 2.
    assert contents(packing, lengths) == [[7, 3], [5, 4, 1], [3, 2, 2, 2, 1]]
    assert packing.row.tolist() == [2, 0, 1, 1, 1, 2, 0, 2, 2, 2]
    assert packing.first.tolist() == [3, 0, 9, 5, 0, 9, 7, 5, 0, 7]
    assert packing.segment.tolist() == [2, 1, 3, 2, 1, 5, 2, 3, 1, 4]


def test_what_does_not_fit_is_not_packed():
    assert best_fit([6, 6, 6], 2, 10) is None
    assert best_fit([6, 6, 4, 4, 1], 2, 10) is None


def test_the_first_that_fit_are_packed_and_none_is_left_out():
    drawn = iter([6, 3, 5, 2, 6, 4, 1, 1])
    packing = pack_first(lambda: next(drawn), 2, 10)
    # 6 + 3 + 5 + 2 leave 4 of 20 positions and the next chain has 6, so it ends the batch.
    assert contents(packing, [6, 3, 5, 2]) == [[6, 3], [5, 2]]
    assert list(drawn) == [4, 1, 1]


def test_one_chain_a_row():
    packing = one_a_row([3, 9, 10], 10)
    assert (packing.row.tolist(), packing.first.tolist(), packing.segment.tolist()) == ([0, 1, 2], [0] * 3, [1] * 3)
    with pytest.raises(UserError, match="a row of 10 steps is too short for a chain of 11 steps"):
        one_a_row([3, 11], 10)
    with pytest.raises(UserError, match="set training.row_steps to at least 11"):
        pack_first(lambda: 11, 2, 10)


@settings(deadline=None)  # a machine may be busy
@given(data=st.data(), rows=st.integers(1, 6), steps=st.integers(1, 40))
def test_chains_of_any_lengths_follow_one_another(data, rows, steps):
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=30))
    packing = best_fit(lengths, rows, steps)
    if packing is None:
        # The rows are then at least half full, or there are fewer rows than chains longer than half a row.
        assert 2 * sum(lengths) > rows * steps
    else:
        assert_sound(packing, lengths, rows, steps)


@settings(deadline=None)  # a machine may be busy
@given(data=st.data(), rows=st.integers(1, 6), steps=st.integers(1, 40))
def test_the_first_chains_of_any_sequence_are_packed(data, rows, steps):
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=30))
    drawn = list(itertools.islice(itertools.cycle(lengths), rows * steps + 1))
    ahead = iter(drawn)
    packing = pack_first(lambda: next(ahead), rows, steps)
    count = len(packing.row)
    assert count >= rows
    assert_sound(packing, drawn[:count], rows, steps)
    assert rows * steps - sum(drawn[:count]) < (rows + 1) * max(lengths)


def hopper(rng):
    """Episode lengths as of a hopper that learns: most fall early, some run to the limit of 1000."""
    return int(np.clip(rng.gamma(1.2, 200), 10, 1000))


def windows(rng):
    """Windows of 20 agent steps, of which one in ten is cut short by its episode's end."""
    return 20 if rng.random() < 0.9 else int(rng.integers(1, 20))


def trials(rng):
    """Contexts of four such episodes."""
    return sum(hopper(rng) for _ in range(4))


def uniform(rng):
    """Episodes of any length up to 1000 alike."""
    return int(rng.integers(1, 1001))


def one_of(*lengths):
    """Episodes of these lengths, each as often."""
    return lambda rng: int(rng.choice(lengths))


def packed_batches(length, rows, steps, batches=20):
    """Of every batch the lengths packed; and how many chains more were drawn."""
    rng = np.random.default_rng(0)
    seen, spare = [], 0
    for _ in range(batches):
        lengths = []

        def draw(lengths=lengths):
            lengths.append(length(rng))
            return lengths[-1]

        count = len(pack_first(draw, rows, steps).row)
        seen.append(lengths[:count])
        spare += len(lengths) - count
    return seen, spare


@pytest.mark.parametrize(
    "length, rows, steps", [(hopper, 16, 1000), (hopper, 64, 1000), (windows, 4, 1000), (trials, 16, 4000)]
)
def test_of_many_short_chains_none_is_disfavoured_and_few_are_drawn_in_vain(length, rows, steps):
    batches, spare = packed_batches(length, rows, steps, 10)
    seen = np.concatenate(batches)
    assert 1 - seen.sum() / (10 * rows * steps) <= 0.05
    rng = np.random.default_rng(1)
    # Whether a chain is seen hardly depends on its length.
    assert abs(np.mean(seen) / np.mean([length(rng) for _ in range(20_000)]) - 1) < 3 / np.sqrt(len(seen))
    assert spare <= 10 * (2 + 0.05 * len(seen) / 10)


@pytest.mark.parametrize(
    "length, rows, steps, least, most",
    [
        (uniform, 16, 1000, 0.07, 0.12),
        (uniform, 64, 1000, 0.03, 0.06),
        (uniform, 8, 2000, 0, 0.05),
        (uniform, 4, 4000, 0, 0.05),
        (one_of(350, 400), 32, 1000, 0.2, 0.27),  # two a row, whichever
        (one_of(350, 400), 8, 4000, 0, 0.05),
        (one_of(550, 300), 18, 1000, 0.12, 0.24),
        (one_of(550, 300), 8, 4000, 0, 0.05),
        (one_of(1000, 350), 16, 1000, 0.08, 0.15),
        (one_of(1000, 350), 4, 4000, 0, 0.05),
        (one_of(801), 4, 4000, 0.19, 0.2),  # four a row, and 796 positions are left
        (one_of(801), 4, 4005, 0, 0),
    ],
)
def test_mean_padding_is_what_the_docs_say(length, rows, steps, least, most):
    batches, _ = packed_batches(length, rows, steps)
    assert least <= 1 - np.mean([sum(batch) for batch in batches]) / (rows * steps) <= most
