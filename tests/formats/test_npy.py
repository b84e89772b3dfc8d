"""One array of a file, as np.load gives it."""

import io

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings

from ringrl.formats.npy import parse_npy


def saved(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_any_array_is_what_np_load_gives(array):
    for given_ in (array, np.asfortranarray(array)):
        content = saved(given_)
        found, expected = parse_npy(content), np.load(io.BytesIO(content), allow_pickle=False)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype and found.shape == expected.shape and found.flags.writeable
        assert found.flags.f_contiguous == expected.flags.f_contiguous


def test_objects_other_versions_and_cut_arrays_are_refused():
    with pytest.raises(ValueError, match="pickled objects, which are never loaded"):
        parse_npy(saved(np.array([{}], object), allow_pickle=True))
    content = saved(np.zeros(3))
    with pytest.raises(ValueError, match=r"an array of shape \(3,\) and type float64 is truncated"):
        parse_npy(content[:-1])
    with pytest.raises(ValueError, match="version"):
        parse_npy(content[:6] + b"\x09" + content[7:])
