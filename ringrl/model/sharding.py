"""How arrays are sharded over a mesh of (data, fsdp, tensor, seq, heads): the one table of partition rules.

Matrices and their optimiser state are stored sharded over _SHARDS. To compute, every device gathers those of one layer
at a time, in the compute dtype, and returns its share of their gradients, summed in float32 (fully sharded data
parallelism; Rajbhandari et al. 2020, ZeRO, stage 3). All of it runs inside `jax.shard_map`, so every transfer is
written in the code and none is chosen by the compiler.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor", "seq", "heads")
BATCH_AXES = ("data", "fsdp")
SEQUENCE_AXES = ("seq", "heads")
# Parameters are sharded over the ring too: where a context needs the ring, it is often the only row, and fsdp is 1.
_SHARDS = ("fsdp", *SEQUENCE_AXES)

TOKENS = P(BATCH_AXES, SEQUENCE_AXES)
"""Activations and batches, [batch, tokens or steps, ...]."""

# Path of a parameter -> the partition in which it is stored; the first match wins. Layers are stacked on axis 0.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/.*(query|key|value|up|gate)/kernel", P(None, _SHARDS, "tensor")),  # heads and hidden width over tensor
    (r"layers/.*(out|down)/kernel", P(None, "tensor", _SHARDS)),
    (r"embed/.*(embedding|kernel)", P(None, _SHARDS)),
    (r"output/kernel", P(_SHARDS, None)),
    (r".*", P()),  # norms and biases are small: whole everywhere
)

GATHERED = "gathered"
"""Checkpoint name of parameters that were gathered: kept for the backward pass, they would be a copy of the model."""


def partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of the parameter at `path`; axes that do not divide its dimension are left out, from the right."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, path))
    return P(*(_dividing(axes, size, mesh) for axes, size in zip(spec, shape, strict=False)))


def partitions(tree: Any, mesh: Mesh, inside: str = "") -> Any:
    """A partition for every array of `tree`: parameters below `inside`, or optimiser state (paths end in theirs)."""

    def find(path: tuple, leaf: Any) -> P:
        name = "/".join([inside, *(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)])
        return partition(name, leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(find, tree)


def whole_but_tensor(tree: Any, mesh: Mesh) -> Any:
    """Partitions of a model's parameters where each device has all of them but what `tensor` shares out (rollouts)."""

    def keep(axes: Any) -> str | None:
        return "tensor" if "tensor" in ((axes,) if isinstance(axes, str) else axes or ()) else None

    stored = partitions(tree, mesh)
    return jax.tree.map(lambda spec: P(*map(keep, spec)), stored, is_leaf=lambda x: isinstance(x, P))


def _dividing(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """`axes`, or as many of them from the left as divide a dimension of `size`; None where none does."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    while names and size % int(np.prod([mesh.shape[name] for name in names])):
        names = names[:-1]
    return (names[0] if len(names) == 1 else names) or None


def on_mesh(mesh: Mesh | None, module: nnx.Module, name: str, f: Callable, tokens: Any, dtype: Any) -> Any:
    """`f(module, tokens)`, every device with the whole of `module` and with its own tokens.

    Args:
        mesh: None: one device, which stores everything.
        module: its parameters are those below `name` in the model.
        name: of the module in the paths of the partition rules.
        f: from the module and local arrays [batch, tokens, ...] to local arrays of such shapes.
        tokens: arrays [batch, tokens, ...] of the whole batch.
        dtype: of the matrices that are gathered.
    """
    graph, params = nnx.split(module)
    if mesh is None:
        return f(module, tokens)
    specs = partitions(params, mesh, name)
    return run_local(mesh, specs, lambda p, t: f(nnx.merge(graph, gather(p, specs, dtype)), t))(params, tokens)


def run_local(mesh: Mesh | None, specs: Any, f: Callable) -> Callable:
    """`f(params, tokens)` on every device's local shard of both; without a mesh there is only one."""
    if mesh is None:
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=(specs, TOKENS), out_specs=TOKENS, check_vma=False)


def gather(params: Any, specs: Any, dtype: Any) -> Any:
    """Local shards -> matrices in `dtype`, whole but for `tensor`; vectors as they are. Inside `jax.shard_map`."""
    return jax.tree.map(lambda x, spec: x if x.ndim < 2 else _whole(x, spec, jnp.dtype(dtype)), params, specs)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole(x: jax.Array, spec: P, dtype: Any) -> jax.Array:
    x = x.astype(dtype)
    for dim, axes in _shards(spec):
        x = lax.all_gather(x, axes, axis=dim, tiled=True)
    return checkpoint_name(x, GATHERED)


def _whole_forward(x: jax.Array, spec: P, dtype: Any) -> tuple[jax.Array, None]:
    return _whole(x, spec, dtype), None


def _whole_backward(spec: P, dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    gradient = gradient.astype(jnp.float32)
    for dim, axes in _shards(spec):
        gradient = lax.psum_scatter(gradient, axes, scatter_dimension=dim, tiled=True)
    return (gradient,)


_whole.defvjp(_whole_forward, _whole_backward)


def _shards(spec: P) -> list[tuple[int, tuple[str, ...]]]:
    """(dimension, mesh axes) over which a matrix is gathered: all but `tensor`."""
    named = [(dim, (axes,) if isinstance(axes, str) else axes) for dim, axes in enumerate(spec) if axes is not None]
    return [(dim, axes) for dim, axes in named if axes != ("tensor",)]
