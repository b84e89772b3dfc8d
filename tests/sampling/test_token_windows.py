"""A file of token ids as batches."""

import itertools

import numpy as np
import pytest

from ringrl.attention.layout import from_ring_order
from ringrl.errors import UserError
from ringrl.sampling.loader import ring_order
from ringrl.sampling.token_windows import Text, text_batches

ALL, PLACES = np.arange(3), np.arange(8)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text.npy"
    np.save(path, np.arange(100, dtype=np.uint16))
    return path


def take(path, count=2, rows=ALL, positions=PLACES, **options):
    batches = text_batches(Text(path, 100), rows=rows, steps=8, positions=positions, seed=5, **options)
    return list(itertools.islice(batches, count))


def test_a_row_is_a_window_and_the_tokens_after_it(path):
    first, second = take(path)
    assert first["token"].shape == (3, 8) and first["token"].dtype == np.int32
    np.testing.assert_array_equal(np.diff(first["token"]), 1)
    np.testing.assert_array_equal(first["target"], first["token"] + 1)
    np.testing.assert_array_equal(first["position"], np.tile(np.arange(8), (3, 1)))
    assert (first["segment_ids"] == 1).all() and (first["weight"] == 1).all()
    starts = {int(row[0]) for batch in (first, second) for row in batch["token"]}
    assert len(starts) > 3 and max(starts) < 92


def test_batches_resume_and_are_divided_as_they_would_have_been(path):
    whole = take(path, 4)
    for a, b in zip(whole[2:], take(path, 2, start_step=2), strict=True):
        np.testing.assert_array_equal(a["token"], b["token"])
    order = ring_order(8, 2, "zigzag")
    halves = [take(path, 1, rows=ALL[1:], positions=order[part])[0]["token"] for part in (slice(4), slice(4, 8))]
    back = from_ring_order(np.concatenate(halves, axis=1), 2, "zigzag")
    np.testing.assert_array_equal(back, whole[0]["token"][1:])


def test_what_is_no_text_is_refused(path, tmp_path):
    with pytest.raises(UserError, match="missing.npy: no file of token ids"):
        Text(tmp_path / "missing.npy", 100)
    np.save(tmp_path / "floats.npy", np.zeros(5))
    with pytest.raises(UserError, match="floats.npy: holds float64"):
        Text(tmp_path / "floats.npy", 100)
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.arange(3))
    with pytest.raises(UserError, match="two.npz: an archive"):
        Text(tmp_path / "two.npz", 100)
    (tmp_path / "empty.npy").touch()
    with pytest.raises(UserError, match="empty.npy: no file of token ids"):
        Text(tmp_path / "empty.npy", 100)
    np.save(tmp_path / "large.npy", np.full(20, 2**32 + 1))
    with pytest.raises(UserError, match="ids from 4294967297"):
        Text(tmp_path / "large.npy", 100).window(0, PLACES)
    with pytest.raises(UserError, match="ids from .* do not fit a vocabulary of 4; set agent.bins"):
        Text(path, 4).window(50, np.arange(8))
    with pytest.raises(UserError, match="100 tokens do not make a row of 100"):
        text_batches(Text(path, 100), rows=ALL, steps=100, positions=np.arange(100), seed=0)
