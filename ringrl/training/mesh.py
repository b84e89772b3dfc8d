"""The mesh (data, fsdp, tensor, seq, heads), and parameters and batches placed on it by `ringrl.model.sharding`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.config import MeshConfig, RunConfig
from ringrl.errors import UserError
from ringrl.model.sharding import AXES, TOKENS, partitions
from ringrl.training.processes import LocalShard
from ringrl.training.torus import lay_out


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
    types = (AxisType.Auto,) * len(AXES)
    # GPUs have coordinates too, of their hosts, which are no links: in JAX's order a ring stays inside a host.
    tpu = devices[0].platform == "tpu"
    laid = lay_out(devices, config.data * config.fsdp, config.seq, config.tensor * config.heads) if tpu else None
    if laid is None or needed < len(devices):
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices[:needed])
    laid = laid.reshape(config.data, config.fsdp, config.seq, config.tensor, config.heads)
    return Mesh(np.moveaxis(laid, 3, 2), AXES, axis_types=types)


def rollout_mesh(config: RunConfig) -> Mesh | None:
    """The mesh for rollouts: `evaluation.mesh` or, on a machine with as many devices, the run's. None: one device.

    Raises UserError where `evaluation.mesh` needs more devices than there are, where many processes have other devices
    than the mesh, and where heads cannot be shared out.
    """
    asked, here = config.evaluation.mesh, jax.device_count()
    chosen = asked or config.mesh
    size = int(np.prod([getattr(chosen, axis) for axis in AXES]))
    if jax.process_count() > 1 and size != here:
        raise UserError(
            f"a mesh of {size} devices for {here} of {jax.process_count()} processes; give --mesh seq={here}"
        )
    if size == 1 or (asked is None and size != here):
        return None
    if config.model.kv_heads % chosen.tensor:
        raise UserError(f"--mesh tensor={chosen.tensor}: does not divide model.kv_heads {config.model.kv_heads}")
    return make_mesh(chosen)


def parameter_shardings(tree: object, mesh: Mesh) -> object:
    """A NamedSharding for every array of `tree`: parameters, or optimiser state, whose paths end in the parameter's."""

    place = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    return jax.tree.map(place, partitions(tree, mesh), is_leaf=lambda x: isinstance(x, P))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, shard: LocalShard | None = None) -> dict[str, jax.Array]:
    """Put host arrays [batch, steps, ...] on the mesh: batch over data and fsdp, steps over seq and heads.

    Args:
        batch: with many processes only this process's shard of it.
        mesh: of all processes' devices.
        shard: the rows and columns that `batch` consists of; None: all.
    """
    sharding = NamedSharding(mesh, TOKENS)
    return {name: _place(x, sharding, shard) for name, x in batch.items()}


def _place(x: np.ndarray, sharding: NamedSharding, shard: LocalShard | None) -> jax.Array:
    if shard is None or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    pieces = partial(_piece, x, shard)
    return jax.make_array_from_callback((*shard.shape, *x.shape[2:]), sharding, pieces)


def _piece(x: np.ndarray, shard: LocalShard, index: Any) -> np.ndarray:
    """A device's piece: one run of the whole batch, and so of the shard."""
    return x[(_within(shard.rows, index[0]), _within(shard.columns, index[1]), *index[2:])]


def _within(indices: np.ndarray, part: slice) -> slice:
    """Where the run `part`, all of which is in the ascending `indices`, lies among them."""
    first = part.start or 0
    start = int(np.searchsorted(indices, first))
    last = indices[-1] + 1 if part.stop is None else part.stop
    return slice(start, start + int(last) - first)
