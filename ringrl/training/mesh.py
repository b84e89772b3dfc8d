"""One mesh (data, fsdp, tensor, seq, heads) and the rules that place parameters and batches on it."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.config import MeshConfig
from ringrl.errors import UserError
from ringrl.model.transformer import BATCH_AXES, SEQUENCE_AXES

AXES = ("data", "fsdp", "tensor", "seq", "heads")

# The layers are spread over the ring too: where a context needs the ring, it is often the only row, and then fsdp is 1.
# Embeddings and output are not: they are small, and split widths would make XLA move every token between devices.
SHARDS = ("fsdp", *SEQUENCE_AXES)
# Path of a parameter -> its partition; the first match wins. Layers are stacked, so theirs lead with the layer axis.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/(query|key|value|up)/kernel", P(None, SHARDS, "tensor")),  # heads and hidden width over tensor
    (r"layers/(out|down)/kernel", P(None, "tensor", SHARDS)),
    (r"embed/(step|trial)/embedding", P(None, "fsdp")),
    (r"embed/linear/\w+/kernel", P(None, "fsdp")),
    (r"output/kernel", P("fsdp", None)),
    (r".*", P()),  # norms and biases are small: whole everywhere
)
BATCH = P(BATCH_AXES, SEQUENCE_AXES)  # [batch, steps, ...]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first data x fsdp x tensor x seq x heads of `devices` (default: those of this machine).

    Raises UserError when there are fewer.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(getattr(config, axis) for axis in AXES)
    needed = int(np.prod(shape))
    if needed > len(devices):
        raise UserError(
            f"mesh {dict(zip(AXES, shape, strict=True))} needs {needed} devices, here are {len(devices)} "
            f"({devices[0].platform}): "
            "make the mesh smaller, or on a CPU simulate devices with RINGRL_CPU_DEVICES=N"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])


def partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of the parameter at `path`; an axis that does not divide its dimension is left whole."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, path))
    return P(*(_dividing(axes, size, mesh) for axes, size in zip(spec, shape, strict=False)))


def _dividing(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """`axes`, or as many of them from the left as divide a dimension of `size`; None where none does."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    while names and size % int(np.prod([mesh.shape[name] for name in names])):
        names = names[:-1]
    return (names[0] if len(names) == 1 else names) or None


def parameter_shardings(tree: object, mesh: Mesh) -> object:
    """A NamedSharding for every array of `tree`: parameters, or optimiser state, whose paths end in the parameter's."""

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
        return NamedSharding(mesh, partition(name, leaf.shape, mesh) if leaf.ndim else P())

    return jax.tree_util.tree_map_with_path(place, tree)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays [batch, steps, ...] onto the mesh: batch over data and fsdp, steps over the ring and its stations."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.device_put(x, sharding) for name, x in batch.items()}
