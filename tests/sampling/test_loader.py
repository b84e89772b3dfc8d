"""Batches from a store in memory: what a row contains, that it is the same every time, and what was read for it."""

import itertools
from dataclasses import fields

import numpy as np
import pytest

from ringrl.attention.layout import from_ring_order, to_ring_order
from ringrl.batch import BATCH_SCHEMA, Batch, ContextPlan
from ringrl.errors import UserError
from ringrl.sampling.loader import make_loader, row_segments
from ringrl.sampling.samplers import HindsightSampler, WindowSampler
from tests.sampling.stores import MemoryStore, unit_normalizer

LAYOUTS = ("contiguous", "striped", "zigzag")


def assert_same(a: Batch, b: Batch) -> None:
    for field in fields(Batch):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def take(loader, count: int) -> list[Batch]:
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def ascending(store: MemoryStore, trajectories: int) -> HindsightSampler:
    return HindsightSampler(store.lengths, store.returns("any"), trajectories)


def ring_positions(length: int, layout: str) -> np.ndarray:
    """The positions of a row in the order of a ring of four."""
    return to_ring_order(np.arange(length), 4, layout, axis=0)


def loader_of(store: MemoryStore, **changes):
    options = {"batch": 4, "steps": 16, "seed": 7} | changes
    return make_loader(store, ascending(store, 2), "any", unit_normalizer(), **options)


def test_a_batch_follows_the_schema():
    batch = take(loader_of(MemoryStore([5, 8, 3])), 1)[0].asdict()
    assert list(batch) == list(BATCH_SCHEMA)
    for name, field in BATCH_SCHEMA.items():
        assert batch[name].dtype == field.dtype
        assert batch[name].shape == field.shape((4, 16), {"observation": 2, "action": 1})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_choose_the_order_of_the_steps(layout):
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    plain = take(loader_of(store), 1)[0]
    ring = take(loader_of(store, positions=ring_positions(16, layout)), 1)[0]
    back = {name: from_ring_order(array, 4, layout) for name, array in ring.asdict().items()}
    assert_same(Batch(**back), plain)


@pytest.mark.parametrize("packing", [True, False])
def test_segments_are_known_without_reading(packing):
    read, store = MemoryStore([5, 8, 3, 7, 6, 4]), MemoryStore([5, 8, 3, 7, 6, 4])  # a loader reads on after its batch
    settings = {"batch": 4, "steps": 32, "seed": 7, "packing": packing}
    expected = take(loader_of(read, **settings), 1)[0].segment_ids
    np.testing.assert_array_equal(row_segments(ascending(store, 2), rows=3, action_repeat=1, **settings), expected[:3])
    assert not store.spans and (expected.max() > 1) == packing


def test_batches_depend_on_the_seed_alone():
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    first, again = take(loader_of(store), 4), take(loader_of(store, threads=5, prefetch=3), 4)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)
    assert not np.array_equal(first[0].observation, first[1].observation)
    assert not np.array_equal(first[0].observation, take(loader_of(store, seed=8), 1)[0].observation)
    assert len(np.unique(first[0].observation[:, 0, 0])) > 1, "rows differ"


def test_a_row_is_the_plan_read_and_padded():
    store = MemoryStore([5, 8, 3])
    batch = take(loader_of(store, batch=1), 1)[0]
    returns = store.returns("any")
    worse, better = (
        int(np.argmin(np.abs(store.lengths - n))) for n in np.bincount(batch.trial[0][batch.weight[0] > 0])
    )
    assert returns[worse] < returns[better]
    expected = np.concatenate([store.observation[worse], store.observation[better]])
    np.testing.assert_array_equal(batch.observation[0, : len(expected)], expected)
    assert batch.return_to_go[0, 0] == pytest.approx(returns[better])
    assert batch.weight.sum() == len(expected)


def test_resuming_gives_the_uninterrupted_batches():
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    whole = take(loader_of(store), 6)
    for a, b in zip(whole[4:], take(loader_of(store, start_step=4), 2), strict=True):
        assert_same(a, b)


def test_resuming_reads_nothing_of_earlier_steps():
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    take(loader_of(store, start_step=10**12, prefetch=1), 1)
    # One batch taken and at most one ahead: four rows each, of two spans each.
    assert len(store.spans) <= 2 * 4 * 2


def test_row_shards_are_the_rows_of_the_whole_batch():
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    whole = take(loader_of(store), 2)
    parts = [take(loader_of(store, rows=np.arange(2) + 2 * index), 2) for index in range(2)]
    for step in range(2):
        joined = {f.name: np.concatenate([getattr(p[step], f.name) for p in parts]) for f in fields(Batch)}
        assert_same(Batch(**joined), whole[step])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_shards_are_the_steps_of_the_whole_batch(layout):
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    order = ring_positions(16, layout)
    whole = take(loader_of(store, positions=order), 2)
    parts = [take(loader_of(store, positions=shard), 2) for shard in np.split(order, 4)]
    for step in range(2):
        joined = {f.name: np.concatenate([getattr(p[step], f.name) for p in parts], axis=1) for f in fields(Batch)}
        assert_same(Batch(**joined), whole[step])


def test_a_part_need_not_be_one_piece():
    store = MemoryStore([5, 8, 3, 7, 6, 4])
    whole = take(loader_of(store), 1)[0]
    rows, positions = np.array([0, 3]), np.array([1, 2, 9, 15])
    part = take(loader_of(store, rows=rows, positions=positions), 1)[0]
    assert_same(part, Batch(**{f.name: getattr(whole, f.name)[rows][:, positions] for f in fields(Batch)}))


def test_a_step_shard_reads_only_its_own_steps():
    store = MemoryStore([8] * 6)
    options = {"batch": 1, "steps": 48, "prefetch": 0, "seed": 0}
    for index in range(6):
        store.spans.clear()
        positions = np.arange(9) + 8 * index if index < 5 else np.arange(4) + 44
        take(make_loader(store, ascending(store, 6), "any", unit_normalizer(), positions=positions, **options), 1)
        spans = [span[1:] for span in store.spans]
        # All of its own trajectory and the next one's first step; before it the one step that `previous_*` show.
        assert spans == {0: [(0, 8), (0, 1)], 5: [(3, 8)]}.get(index, [(7, 8), (0, 8), (0, 1)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize("lengths", [[500, 5600], [80] * 70], ids=["long", "short"])
def test_a_ring_shard_of_long_rows_reads_only_its_own_steps(layout, repeat, lengths):
    store, size, steps = MemoryStore(lengths), 8, 6144
    order = to_ring_order(np.arange(steps), size, layout, axis=0)
    options = {"batch": 1, "steps": steps, "prefetch": 0, "seed": 0, "action_repeat": repeat}
    sampler = ascending(store, len(lengths))

    def batch(positions: np.ndarray | None = None) -> Batch:
        return take(make_loader(store, sampler, "any", unit_normalizer(), positions=positions, **options), 1)[0]

    whole = batch()
    for positions in np.split(order, size):
        store.spans.clear()
        part = batch(positions)
        assert_same(part, Batch(**{f.name: getattr(whole, f.name)[:, positions] for f in fields(Batch)}))
        read, filled = sum(stop - start for _, start, stop in store.spans), int((part.segment_ids > 0).sum())
        # A stripe is read whole. Two runs need at most a step before each; shorter gaps than 250 are read, here none.
        assert read <= (sum(lengths) if layout == "striped" else repeat * max(filled + 2, 1))


def test_a_stripe_of_a_long_ring_is_cut():
    store = MemoryStore([4000])
    sampler = ascending(store, 1)
    options = {"batch": 1, "steps": 4096, "prefetch": 0, "seed": 0}
    whole = take(make_loader(store, sampler, "any", unit_normalizer(), **options), 1)[0]
    positions = to_ring_order(np.arange(4096), 512, "striped", axis=0)[24:32]
    store.spans.clear()
    part = take(make_loader(store, sampler, "any", unit_normalizer(), positions=positions, **options), 1)[0]
    assert_same(part, Batch(**{f.name: getattr(whole, f.name)[:, positions] for f in fields(Batch)}))
    assert [span[1:] for span in store.spans] == [(at - 1, at + 1) for at in range(3, 4000, 512)]


def test_a_shard_of_padding_reads_one_step():
    store = MemoryStore([4, 4])
    batch = take(loader_of(store, batch=1, positions=np.arange(10, 16), prefetch=0), 1)[0]
    assert [stop - start for _, start, stop in store.spans] == [1]
    assert not batch.weight.any() and not batch.segment_ids.any() and batch.observation.shape == (1, 6, 2)


def packed(store: MemoryStore, **changes):
    sampler = WindowSampler(store.lengths, store.returns("any"), action_repeat=2)
    options = {"batch": 4, "steps": 16, "seed": 7, "action_repeat": 2, "packing": True} | changes
    return make_loader(store, sampler, "any", unit_normalizer(), **options)


LENGTHS = [3, 20, 9, 14, 1, 6, 28, 2]


def test_packed_rows_contain_whole_chains():
    store = MemoryStore(LENGTHS)
    batches = take(packed(store), 5)
    assert max(batch.segment_ids.max() for batch in batches) > 1
    for batch in batches:
        for row in range(4):
            ids, position, reward = batch.segment_ids[row], batch.position[row], batch.reward[row]
            filled = int((ids > 0).sum())
            assert (ids[:filled] > 0).all() and (np.diff(ids[:filled]) >= 0).all(), "chain after chain, then padding"
            for segment in range(1, ids.max() + 1):
                count = int((ids == segment).sum())
                assert position[ids == segment].tolist() == list(range(count))
                sums = [np.add.reduceat(each, np.arange(0, len(each), 2)) for each in store.reward]
                assert any(len(each) == count and np.allclose(each, reward[ids == segment]) for each in sums)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_parts_are_those_of_the_whole_batch(layout):
    store = MemoryStore(LENGTHS)
    whole = take(packed(store), 3)
    rows, positions = np.array([1, 2]), ring_positions(16, layout)[4:12]
    for threads in (1, 3):
        part = take(packed(store, rows=rows, positions=positions, threads=threads, start_step=1), 2)
        for a, b in zip(part, whole[1:], strict=True):
            assert_same(a, Batch(**{f.name: getattr(b, f.name)[rows][:, positions] for f in fields(Batch)}))


def test_windows_through_the_loader():
    """Ten integers: the rewards of one episode, read in windows of two agent steps of two environment steps."""
    store = MemoryStore([10])
    store.reward[0][:] = np.arange(10)
    sampler = WindowSampler(store.lengths, store.returns("any"), window=2, action_repeat=2)
    loader = make_loader(store, sampler, "any", unit_normalizer(), batch=8, steps=2, seed=0, action_repeat=2)
    batch = take(loader, 1)[0]
    rewards, to_go = [1, 5, 9, 13, 17], [45, 44, 39, 30, 17]
    assert len(np.unique(batch.step[:, 0])) > 2
    for row, first in enumerate(batch.step[:, 0].tolist()):
        filler = [0] * (first == 4)
        assert batch.reward[row].tolist() == rewards[first : first + 2] + filler
        assert batch.return_to_go[row].tolist() == to_go[first : first + 2] + filler


def test_an_error_in_a_background_thread_reaches_the_caller():
    store = MemoryStore([9, 9])
    loader = loader_of(store, steps=10)
    with pytest.raises(UserError, match=r"10 steps is too short for a chain of 18 steps; .*row_steps to at least 18"):
        next(loader)


def test_the_horizon_of_the_plans_reaches_the_batch_and_must_be_one():
    store = MemoryStore([6])
    horizons = iter([2, 2, 2, 3])

    class Mixed:
        def sample(self, rng) -> ContextPlan:
            whole = WindowSampler(store.lengths, store.returns("any"), horizon=next(horizons))
            return whole.sample(rng)

    loader = make_loader(store, Mixed(), "any", unit_normalizer(), batch=2, steps=6, seed=0, threads=1, prefetch=0)
    reward = store.reward[0].astype(np.float64)
    expected = 6 * np.append((reward[:-1] + reward[1:]) / 2, reward[-1])
    np.testing.assert_allclose(next(loader).return_to_go, np.stack([expected, expected]), rtol=1e-6)
    with pytest.raises(UserError, match="horizons .*2, 3"):
        next(loader)
