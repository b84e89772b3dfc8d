"""A file of token ids: what it gives, and which files are refused."""

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.formats.token_file import TokenFile


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text.npy"
    np.save(path, np.arange(100, dtype=np.uint16))
    return path


def test_ids_are_read_where_they_are_asked_for(path):
    ids = TokenFile(path, 100).read(np.array([7, 3, 99]))
    assert ids.tolist() == [7, 3, 99] and ids.dtype == np.int32


def test_files_of_one_length_have_different_checksums(path, tmp_path):
    np.save(tmp_path / "other.npy", np.arange(1, 101, dtype=np.uint16))
    np.save(tmp_path / "wide.npy", np.arange(100, dtype=np.uint32))
    files = [path, tmp_path / "other.npy", tmp_path / "wide.npy"]
    assert len({TokenFile(file, 200).checksum() for file in files}) == 3


def test_documents_and_weights_lie_in_one_line(tmp_path):
    np.save(tmp_path / "two.npy", np.arange(6).reshape(2, 3))
    flat = TokenFile(tmp_path / "two.npy", 10)
    assert flat.document == 3 and flat.read(np.array([3, 5])).tolist() == [3, 5]
    assert flat.read_weights(np.arange(6)).tolist() == [1] * 6 and flat.weights is None
    np.save(tmp_path / "two.weights.npy", np.array([[0, 0, 1], [0, 1, 1]], np.uint8))
    weighted = TokenFile(tmp_path / "two.npy", 10)
    assert weighted.read_weights(np.array([2, 3, 4])).tolist() == [1, 0, 1]
    np.save(tmp_path / "text.npy", np.arange(6))
    assert len({file.checksum() for file in (flat, weighted, TokenFile(tmp_path / "text.npy", 10))}) == 3


def test_weights_of_another_shape_are_refused(path, tmp_path):
    np.save(tmp_path / "text.weights.npy", np.ones(99))
    with pytest.raises(UserError, match=r"text.weights.npy: holds float64 \(99,\); the weights of .* \(100,\)"):
        TokenFile(path, 100)


def test_other_files_are_refused(path, tmp_path):
    with pytest.raises(UserError, match="missing.npy: no file of token ids"):
        TokenFile(tmp_path / "missing.npy", 100)
    np.save(tmp_path / "floats.npy", np.zeros(5))
    with pytest.raises(UserError, match="floats.npy: holds float64"):
        TokenFile(tmp_path / "floats.npy", 100)
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.arange(3))
    with pytest.raises(UserError, match="two.npz: an archive"):
        TokenFile(tmp_path / "two.npz", 100)
    (tmp_path / "empty.npy").touch()
    with pytest.raises(UserError, match="empty.npy: no file of token ids"):
        TokenFile(tmp_path / "empty.npy", 100)
    np.save(tmp_path / "large.npy", np.full(20, 2**32 + 1))
    with pytest.raises(UserError, match="ids from 4294967297"):
        TokenFile(tmp_path / "large.npy", 100).read(np.arange(8))
    with pytest.raises(UserError, match="ids from .* do not fit a vocabulary of 4; set agent.bins"):
        TokenFile(path, 4).read(np.arange(50, 58))
