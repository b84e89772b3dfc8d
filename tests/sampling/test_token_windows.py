"""Batches of token ids: windows of a file."""

import itertools

import numpy as np
import pytest

from ringrl.attention.layout import from_ring_order, to_ring_order
from ringrl.batch import PRECEDED_TOKEN_BATCH_SCHEMA, TOKEN_BATCH_SCHEMA
from ringrl.errors import UserError
from ringrl.formats.token_file import TokenFile
from ringrl.sampling.token_windows import token_batches

ALL, POSITIONS = np.arange(3), np.arange(8)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text.npy"
    np.save(path, np.arange(100, dtype=np.uint16))
    return path


def take(path, count=2, rows=ALL, positions=POSITIONS, **options):
    batches = token_batches(TokenFile(path, 100), rows=rows, steps=8, positions=positions, seed=5, **options)
    return list(itertools.islice(batches, count))


def test_a_batch_follows_the_schema(path):
    batch = take(path, 1)[0].asdict()
    assert list(batch) == list(TOKEN_BATCH_SCHEMA)
    for name, field in TOKEN_BATCH_SCHEMA.items():
        assert batch[name].dtype == field.dtype and batch[name].shape == field.shape((3, 8), {})


def test_a_row_is_a_window_and_the_tokens_after_it(path):
    first, second = take(path)
    np.testing.assert_array_equal(np.diff(first.token), 1)
    np.testing.assert_array_equal(first.target, first.token + 1)
    np.testing.assert_array_equal(first.position, np.tile(np.arange(8), (3, 1)))
    assert (first.segment_ids == 1).all() and (first.weight == 1).all()
    starts = {int(row[0]) for batch in (first, second) for row in batch.token}
    assert len(starts) > 3 and max(starts) < 92


def test_batches_resume_and_are_divided_as_they_would_have_been(path):
    whole = take(path, 4)
    for a, b in zip(whole[2:], take(path, 2, start_step=2), strict=True):
        np.testing.assert_array_equal(a.token, b.token)
    order = to_ring_order(np.arange(8), 2, "zigzag", axis=0)
    halves = [take(path, 1, rows=ALL[1:], positions=half)[0].token for half in np.split(order, 2)]
    back = from_ring_order(np.concatenate(halves, axis=1), 2, "zigzag")
    np.testing.assert_array_equal(back, whole[0].token[1:])


def test_a_row_is_the_beginning_of_a_document_and_weighs_what_the_file_says(tmp_path):
    path = tmp_path / "documents.npy"
    np.save(path, np.arange(100).reshape(10, 10))
    np.save(tmp_path / "documents.weights.npy", np.tile(np.array([1, 0, 0, 1, 0, 0, 0, 0, 0.5, 1]), (10, 1)))
    (batch,) = take(path, 1)
    assert not (batch.token[:, 0] % 10).any() and len(set(batch.token[:, 0])) > 1
    np.testing.assert_array_equal(batch.token - batch.token[:, :1], batch.position)
    np.testing.assert_array_equal(batch.weight, np.tile([0, 0, 1, 0, 0, 0, 0, 0.5], (3, 1)))


def test_nothing_follows_the_last_token_of_a_document(tmp_path):
    np.save(tmp_path / "whole.npy", np.arange(80).reshape(10, 8))
    (batch,) = take(tmp_path / "whole.npy", 1)
    np.testing.assert_array_equal(batch.weight, np.tile([1, 1, 1, 1, 1, 1, 1, 0], (3, 1)))
    np.testing.assert_array_equal(batch.target[:, :7], batch.token[:, 1:])


def test_a_document_shorter_than_a_row_is_refused(tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((10, 7), np.int32))
    with pytest.raises(UserError, match="7 tokens of a document do not make a row of 8"):
        take(tmp_path / "short.npy")


def test_tokens_come_with_those_before_them_in_the_row(path):
    (batch,) = take(path, 1, previous=2)
    first = int(batch.token[0, 0])
    assert batch.previous[0, :4].tolist() == [[0, 0], [first, 0], [first + 1, first], [first + 2, first + 1]]
    assert list(batch.asdict()) == list(PRECEDED_TOKEN_BATCH_SCHEMA)
    for name, field in PRECEDED_TOKEN_BATCH_SCHEMA.items():
        array = getattr(batch, name)
        assert array.dtype == field.dtype and array.shape == field.shape((3, 8), {"previous": 2})
    order = to_ring_order(np.arange(8), 2, "zigzag", axis=0)
    halves = [take(path, 1, positions=half, previous=2)[0].previous for half in np.split(order, 2)]
    np.testing.assert_array_equal(from_ring_order(np.concatenate(halves, axis=1), 2, "zigzag"), batch.previous)


def test_a_file_shorter_than_a_row_is_refused(path):
    with pytest.raises(UserError, match="100 tokens do not make a row of 100"):
        token_batches(TokenFile(path, 100), rows=ALL, steps=100, positions=np.arange(100), seed=0)
