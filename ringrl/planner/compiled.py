"""Whether a run fits on a slice of TPUs: its own training step, compiled ahead of time by the real TPU compiler."""

import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ringrl.agent import load_agent
from ringrl.config import MeshConfig, RunConfig, parse_config
from ringrl.envs import make
from ringrl.errors import UserError
from ringrl.experience.store import open_store
from ringrl.planner.topology import bytes_in, device_hbm_bytes, find_devices
from ringrl.training.mesh import AXES, BATCH, make_mesh
from ringrl.training.state import TrainState, abstract_state, make_train_step


@dataclass(frozen=True)
class CompiledPlan:
    """The compiler's answer. Sizes are bytes on one device."""

    topology: str  # as asked for, such as v5e:2x4
    device_kind: str  # the compiler's name of the chip, such as TPU v5 lite
    devices: int
    mesh: dict[str, int]  # devices along data, fsdp, tensor, seq, heads
    mesh_note: str | None  # how `mesh` differs from the config's; None where it is the config's
    fits: bool
    tokens: int  # in one training step, over all rows
    row_tokens: int  # in one row: the context
    bytes_per_device: int  # arguments + temporaries; where it does not fit, what the compiler says it requires
    argument_bytes: int | None  # parameters, optimiser state, batch; None where it does not fit
    temporary_bytes: int | None  # gradients and activations; None where it does not fit
    hbm_bytes: int  # that a program may fill
    parameters: int
    compile_seconds: float
    reason: str | None  # the compiler's own sentence where it does not fit


def plan_training_step(config: RunConfig, topology: str) -> CompiledPlan:
    """Compile the training step of `config` for the TPU slice `topology` (v5e:2x4) on a machine without TPUs.

    The mesh is the config's where its size is the slice's; otherwise `seq` is what the other axes leave.

    Raises:
        UserError: no such slice, libtpu missing, or the slice, the mesh and the row do not divide.
    """
    devices = find_devices(topology)
    config, note = fit_mesh(config, topology, len(devices))
    mesh = _place(config.mesh, devices, topology)
    agent = load_agent(config.agent.name)
    sizes = model_sizes(config)
    graph, state = abstract_state(config, agent, sizes, mesh)
    step = make_train_step(config, agent, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    batch = _abstract_batch(config, sizes, mesh)
    hbm = device_hbm_bytes(devices[0])
    start = time.perf_counter()
    arguments, temporaries, required, reason = _compile(step, state, batch)
    row_tokens = config.training.row_steps * agent.tokens(config.agent).tokens_per_step
    return CompiledPlan(
        topology=topology,
        device_kind=devices[0].device_kind,
        devices=len(devices),
        mesh={axis: int(mesh.shape[axis]) for axis in AXES},
        mesh_note=note,
        fits=reason is None,
        tokens=config.training.batch * row_tokens,
        row_tokens=row_tokens,
        bytes_per_device=required,
        argument_bytes=arguments,
        temporary_bytes=temporaries,
        hbm_bytes=hbm,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        compile_seconds=round(time.perf_counter() - start, 2),
        reason=reason,
    )


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
    values = config.model_dump(mode="json")
    values["mesh"]["seq"] = seq
    note = f"mesh.seq is {seq}, not the config's {mesh.seq}: the slice has {devices} devices"
    return parse_config(values, f"{topology} with mesh.seq={seq}"), note


def model_sizes(config: RunConfig) -> dict[str, int]:
    """Widths of observation and action: the store's where it is there already, else those of the task's environment."""
    if config.data.store.exists():
        dims = open_store(config.data.store).dims
        return {"observation": dims.observation, "action": dims.action}
    env = make(config.data.task)
    try:
        first, _ = env.reset(seed=0)
        return {"observation": len(first), "action": len(env.action_space.sample())}
    finally:
        env.close()


def _place(config: MeshConfig, devices: list[Any], topology: str) -> Mesh:
    try:
        return make_mesh(config, devices)
    except NotImplementedError as error:  # the axes would have to split the links of one direction of the torus
        raise UserError(
            f"{topology}: JAX finds no way to lay mesh {config.model_dump(include=set(AXES))} on its links; "
            f"choose axes that are products of whole sides of the slice"
        ) from error


def _abstract_batch(config: RunConfig, sizes: dict[str, int], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of `ringrl.episode.Batch` as `place_batch` puts them on the mesh."""
    rows, sharding = (config.training.batch, config.training.row_steps), NamedSharding(mesh, BATCH)
    widths = {"observation": sizes["observation"], "action": sizes["action"], "previous_action": sizes["action"]}
    numbers = ("reward", "return_to_go", "completion", "previous_reward", "previous_completion", "weight")
    counts = ("step", "trial", "position", "segment_ids")
    shapes = {name: ((*rows, width), jnp.float32) for name, width in widths.items()}
    shapes |= {name: (rows, jnp.float32) for name in numbers} | {name: (rows, jnp.int32) for name in counts}
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}


def _compile(step: Any, state: TrainState, batch: dict) -> tuple[int | None, int | None, int, str | None]:
    """Arguments, temporaries, and their sum; or what the compiler says is required and why it is too much."""
    try:
        memory = step.lower(state, batch).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        required = bytes_in(message, r"(?:requires|required[^(]*\(|Used) ?([\d.]+)([BKMGT]?)")
        if "RESOURCE_EXHAUSTED" not in message or required is None:
            raise
        return None, None, required, _first_sentence(message)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return arguments, temporaries, arguments + temporaries, None


def _first_sentence(message: str) -> str:
    return re.split(r"\.\s", message, maxsplit=1)[0][:300]
