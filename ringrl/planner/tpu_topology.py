"""Slices of TPUs by name, as libtpu's compiler describes them; no TPU is needed or used."""

import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from ringrl.errors import UserError

_FLAT = ("4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES: dict[str, tuple[str, ...]] = {
    "v2": ("2x2", *_FLAT),
    "v3": ("2x2", *_FLAT, "16x32", "32x32"),
    "v5e": ("1x1", "2x2", "2x4", *_FLAT),
    "v6e": ("1x1", "2x2", "2x4", *_FLAT),
}
"""Slices of the generations whose chips lie in a plane (Cloud TPU's documentation); libtpu would take any rectangle."""

_MOST_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""Chips in the largest slice of the generations whose chips fill a box."""

_SMALL_BOXES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
GENERATIONS = (*_SLICES, *_MOST_CHIPS)
"""Of TPUs: the names before the colon."""

EXAMPLES = "v5e:2x4, v5e:16x16, v6e:4x8, v3:16x16, v4:2x2x4, v4:8x8x8, v5p:8x8x8"
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # ask no cloud metadata server what machine this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of this machine, which has none; the topology is named apart
    # The lock keeps two processes from driving one TPU. Compiling drives none, and any JAX process may have the lock.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def find_slice(name: str) -> list[Any]:
    """The devices of the slice `name`, such as v5e:2x4, for a mesh to compile for; a v4 or v5p chip is one device.

    Raises:
        UserError: there is no such slice (the message lists some), or libtpu is not installed.
    """
    generation = _check(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('planning needs the TPU compiler, libtpu: pip install "ringrl[plan]" (Linux, x86_64)')
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    if generation in ("v4", "v5p"):
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on the real machine
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name}: libtpu does not know it: {' '.join(str(error).split())[:200]}") from error


def hbm_bytes(device: Any) -> int:
    """HBM that the compiler may fill on a device, bytes; some is kept for the runtime (15.75 GiB of a v5e's 16).

    Read from the compiler's error for a program that fits nowhere: topology devices have no memory statistics.
    """
    too_much = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1.0).lower(too_much).compile()
    except jax.errors.JaxRuntimeError as error:
        available = bytes_in(str(error), r"available HBM \(([\d.]+)([BKMGT]?)\)")
        if available is not None:
            return available
        raise
    raise RuntimeError(f"{device.device_kind}: the compiler put 4 TiB on one device, so its HBM is unknown")


def bytes_in(message: str, pattern: str) -> int | None:
    """The last size that `pattern` (groups: number, unit) finds in a compiler's message, in bytes."""
    found = re.findall(pattern, message)
    return round(float(found[-1][0]) * _UNITS[found[-1][1]]) if found else None


def _check(name: str) -> str:
    """The generation, one of `GENERATIONS`, of a slice that exists; UserError for others."""
    if not re.fullmatch(r"\w+:\d+(x\d+)+", name):
        raise UserError(f"topology `{name}`: write generation:chips, for example {EXAMPLES}")
    generation, _, shape = name.partition(":")
    if generation in _SLICES and shape not in _SLICES[generation]:
        raise UserError(f"topology {name} does not exist; {generation} has {', '.join(_SLICES[generation])}")
    if generation in _MOST_CHIPS and not _is_box(shape, _MOST_CHIPS[generation]):
        raise UserError(
            f"topology {name} does not exist; {generation} has {', '.join(_SMALL_BOXES)} and boxes of multiples of 4 "
            f"in ascending order, such as 4x4x4 or 4x4x8, up to {_MOST_CHIPS[generation]} chips"
        )
    return generation


def _is_box(shape: str, most: int) -> bool:
    sides = [int(side) for side in shape.split("x")]
    if shape in _SMALL_BOXES:
        return True
    return (
        len(sides) == 3
        and min(sides) >= 4
        and all(side % 4 == 0 for side in sides)
        and sides == sorted(sides)
        and sides[0] * sides[1] * sides[2] <= most
    )
