"""A config's own training step for TPUs or GPUs that this machine does not have: shapes and shardings alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from ringrl.agent import Decoder, make_decoder
from ringrl.config import MeshConfig, RunConfig, parse_config
from ringrl.envs import make_env
from ringrl.errors import UserError
from ringrl.model.sharding import AXES, TOKENS
from ringrl.model.token_ids import TokenIds
from ringrl.planner.topology import find_devices
from ringrl.store.episode_store import open_store
from ringrl.store.zarr import is_url
from ringrl.training.mesh import make_mesh
from ringrl.training.state import TrainState, abstract_state, make_train_step


@dataclass(frozen=True)
class AbstractStep:
    """A training step, and the shapes and shardings of its arguments."""

    config: RunConfig  # with the mesh that the slice has
    mesh_note: str | None  # how that differs from the mesh asked for; None: not at all
    mesh: Mesh
    state: TrainState  # of ShapeDtypeStructs with shardings
    batch: dict[str, jax.ShapeDtypeStruct]
    step: Any  # jitted (state, batch) -> (state, metrics)
    tokens_per_step: int

    @property
    def row_tokens(self) -> int:
        """Tokens in a row: the context."""
        return self.config.training.row_steps * self.tokens_per_step

    def argument_bytes(self) -> dict[str, int]:
        """Bytes on one device of the step's arguments, by kind."""
        kinds = {"parameters": self.state.params, "optimiser state": self.state.optimizer, "batch": self.batch}
        return {kind: sum(local_bytes(x) for x in jax.tree.leaves(tree)) for kind, tree in kinds.items()}

    def layer_shapes(self) -> set[tuple[int, ...]]:
        """Shapes on one device of the matrices of all layers."""
        arrays = [x for x in jax.tree.leaves(self.state.params.get("layers", {})) if x.ndim > 2]
        return {x.sharding.shard_shape(x.shape) for x in arrays}


def local_bytes(x: Any) -> int:
    """Bytes of one device's shard of an array."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def make_abstract_step(config: RunConfig, topology: str) -> AbstractStep:
    """The step of `config` on the slice `topology`; see `fit_mesh` for the mesh.

    Raises:
        UserError: no such slice, its compiler missing, or the slice, the mesh and the row do not divide.
    """
    devices = find_devices(topology)
    config, note = fit_mesh(config, topology, len(devices))
    mesh = place_mesh(config.mesh, devices, topology)
    decoder = make_decoder(config.agent)
    sizes = model_sizes(config, decoder)
    graph, state = abstract_state(config, decoder, sizes, mesh)
    step = make_train_step(config, decoder, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    batch = abstract_batch(config, decoder, sizes, mesh)
    tokens_per_step = decoder.tokens.tokens_per_step
    return AbstractStep(config, note, mesh, state, batch, step, tokens_per_step)


def fit_mesh(config: RunConfig, topology: str, devices: int) -> tuple[RunConfig, str | None]:
    """`config` with a mesh over all devices of the slice, and what was changed (None: nothing).

    Raises UserError where data x fsdp x tensor x heads does not divide the slice, or the row not over the ring.
    """
    mesh = config.mesh
    others = mesh.data * mesh.fsdp * mesh.tensor * mesh.heads
    if others * mesh.seq == devices:
        return config, None
    if devices % others:
        raise UserError(
            f"{topology} has {devices} devices, which data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor} "
            f"x heads {mesh.heads} = {others} does not divide: choose mesh sizes whose product divides {devices}"
        )
    seq = devices // others
    note = f"mesh.seq is {seq}, not the config's {mesh.seq}: the slice has {devices} devices"
    return change(config, "mesh", "seq", seq, f"{topology} with mesh.seq={seq}"), note


def change(config: RunConfig, section: str, key: str, value: Any, where: str) -> RunConfig:
    """`config` with one value changed, checked as if it had been in the file; `where` names it in the error."""
    values = config.model_dump(mode="json")
    values[section][key] = value
    return parse_config(values, where)


def model_sizes(config: RunConfig, decoder: Decoder) -> dict[str, int]:
    """Widths of observation and action: the store's if it exists, else the environment's. Of token ids: their own."""
    if isinstance(decoder.tokens, TokenIds):
        return decoder.tokens.sizes
    if is_url(config.data.store) or Path(config.data.store).exists():
        dims = open_store(config.data.store).dims
        return {"observation": dims.observation, "action": dims.action}
    env = make_env(config.data.task)
    try:
        first, _ = env.reset(seed=0)
        return {"observation": len(first), "action": len(env.action_space.sample())}
    finally:
        env.close()


def place_mesh(config: MeshConfig, devices: list[Any], topology: str) -> Mesh:
    """The mesh on the slice's devices. Raises UserError where its axes do not fit the slice's links."""
    try:
        return make_mesh(config, devices)
    except NotImplementedError as error:  # the axes would split the links of one direction of the torus
        raise UserError(
            f"{topology}: JAX finds no way to lay mesh {config.model_dump(include=set(AXES))} on its links; "
            f"choose axes that are products of whole sides of the slice"
        ) from error


def abstract_batch(
    config: RunConfig, decoder: Decoder, sizes: dict[str, int], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a batch, of episodes or of token ids, as `place_batch` puts them on the mesh."""
    rows, sharding = (config.training.batch, config.training.row_steps), NamedSharding(mesh, TOKENS)
    return {
        name: jax.ShapeDtypeStruct(field.shape(rows, sizes), field.dtype, sharding=sharding)
        for name, field in decoder.schema.items()
    }
