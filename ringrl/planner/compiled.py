"""Whether a run fits on a slice of TPUs or on GPUs: its own training step, compiled ahead of time by their compiler."""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from ringrl.accelerators import Accelerator, find_accelerator
from ringrl.attention import compiler_options
from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.model.flops import model_flops
from ringrl.model.sharding import AXES
from ringrl.planner.abstract_step import AbstractStep, make_abstract_step
from ringrl.planner.bound import Traffic, mfu_bound, read_traffic, ring_bandwidth
from ringrl.planner.memory import Memory, is_kept, kinds_of, read_memory
from ringrl.planner.schedule import read_transfers
from ringrl.planner.topology import device_hbm_bytes
from ringrl.planner.tpu_topology import bytes_in
from ringrl.planner.work import Ring, executed_flops


class CompilerError(UserError):
    """The compiler cannot compile the step, for another reason than memory."""


@dataclass(frozen=True)
class CompiledPlan:
    """What the compiler assigned. Bytes are those of one device, FLOPs those of all devices in one step.

    Where the step does not fit, what follows from its schedule is None; `memory` and `largest` say what it would need.
    """

    topology: str  # as asked for, such as v5e:2x4
    device_kind: str  # the compiler's name of the chip, such as TPU v5 lite
    devices: int
    mesh: dict[str, int]  # devices along data, fsdp, tensor, seq, heads
    mesh_note: str | None  # how `mesh` differs from the config's; None where it is the config's
    fits: bool
    tokens: int  # in one training step, over all rows
    row_tokens: int  # in one row: the context
    bytes_per_device: int  # HBM that the compiler has assigned, or would have to
    argument_bytes: int  # of these, parameters, optimiser state and batch
    temporary_bytes: int  # of these, gradients and activations, and gaps between them
    hbm_bytes: int  # that a program may fill
    host_bytes_per_device: int  # memory of the host that is taken by what was offloaded
    host_bytes_available: int | None  # a device's share of its host; None where unknown
    memory: dict[str, int]  # `bytes_per_device` by kind at the moment when most is needed
    largest: list[dict]  # temporaries at that moment: bytes, shape, made_by (a function here)
    parameters: int
    model_flops: float  # useful: causal attention once, no recomputation (`ringrl.model.flops`)
    executed_flops: float | None  # recomputation too (`ringrl.planner.work`); None where they cannot be counted
    traffic: dict[str, int] | None  # sent in a step: ring, ring_waited, other, other_waited (`ringrl.planner.bound`)
    mfu_bound: float | None  # by the roofline; not a measurement
    mfu_bound_by: str | None  # what sets it
    compile_seconds: float
    reason: str | None  # the compiler's own sentence where it does not fit


def plan_training_step(config: RunConfig, topology: str) -> CompiledPlan:
    """Compile the training step of `config` for `topology` (v5e:2x4, h100:8) on a machine without TPUs or GPUs.

    The mesh is the config's where its size is the slice's; otherwise `seq` is what the other axes leave.

    Raises:
        UserError: no such slice, its compiler missing, or the slice, the mesh and the row do not divide.
        CompilerError: the compiler failed, but not because HBM is too small.
    """
    abstract = make_abstract_step(config, topology)
    device = abstract.mesh.devices.flat[0]
    start = time.perf_counter()
    traced = abstract.step.trace(abstract.state, abstract.batch)
    hbm = device_hbm_bytes(device)
    compilation = compile_program(traced.lower, compiler_options(device.platform), hbm)
    accelerator, memory = find_accelerator(device.device_kind), compilation.memory
    arguments = abstract.argument_bytes()
    host = accelerator.host_bytes if accelerator else None
    c = abstract.config
    return CompiledPlan(
        topology=topology,
        device_kind=device.device_kind,
        devices=abstract.mesh.size,
        mesh={axis: int(abstract.mesh.shape[axis]) for axis in AXES},
        mesh_note=abstract.mesh_note,
        fits=compilation.reason is None,
        tokens=c.training.batch * abstract.row_tokens,
        row_tokens=abstract.row_tokens,
        bytes_per_device=memory.hbm,
        argument_bytes=sum(arguments.values()),
        temporary_bytes=memory.hbm - sum(arguments.values()),
        hbm_bytes=hbm,
        host_bytes_per_device=memory.host,
        host_bytes_available=None if host is None else int(host),
        memory=kinds_of(memory, arguments, c.model.layers, abstract.layer_shapes()),
        largest=[buffer.card() for buffer in memory.temporaries[:8]],
        parameters=sum(x.size for x in jax.tree.leaves(abstract.state.params)),
        **_speed(abstract, traced, compilation, accelerator),
        compile_seconds=round(time.perf_counter() - start, 2),
        reason=compilation.reason,
    )


@dataclass(frozen=True)
class Compilation:
    """What came back from the compiler."""

    memory: Memory
    program: str | None  # scheduled HLO; None where it does not fit
    reason: str | None  # the compiler's sentence where it does not fit


def compile_program(lower: Callable[[], jax.stages.Lowered], options: dict[str, str], hbm: int) -> Compilation:
    """Compile with the compiler's `options` for devices on which a program may fill `hbm` bytes.

    The TPU compiler refuses a program that is too large; the CUDA compiler compiles it, and its buffers tell.

    Raises CompilerError where it fails, but not because HBM is too small.
    """
    with tempfile.TemporaryDirectory(prefix="ringrl-plan-") as folder:
        options = options | {"xla_dump_to": folder}
        try:
            program, reason = lower().compile(compiler_options=dict(options)).as_text(), None
        except Exception as error:  # Mosaic's is no JaxRuntimeError; all that is raised here comes from the compiler
            program, reason = None, " ".join(str(error).split())
            if "RESOURCE_EXHAUSTED" not in reason or "hbm" not in reason.lower():
                raise CompilerError(f"the compiler failed: {_first_sentence(reason)}") from error
        memory = read_memory(Path(folder))
    if memory is None:
        # Some single buffer was too large, and the compiler gave up before it assigned any.
        required = bytes_in(reason or "", r"(?:requires|required[^(]*\(|Used) ?([\d.]+)([BKMGT]?)")
        if required is None:
            raise RuntimeError(f"the compiler's message has no size of the program's memory: {reason}")
        memory = Memory(required, 0, ())
    if reason is None and memory.hbm > hbm:
        program, reason = None, f"the program needs {memory.hbm:,} bytes of a device's {hbm:,}"
    return Compilation(memory, program, None if reason is None else _first_sentence(reason))


def _first_sentence(message: str) -> str:
    return re.split(r"\.\s", message, maxsplit=1)[0][:300]


def _speed(abstract: AbstractStep, traced: Any, compilation: Compilation, accelerator: Accelerator | None) -> dict:
    """The fields of `CompiledPlan` about what a step computes and sends."""
    c, devices = abstract.config, abstract.mesh.size
    sizes = {"rows": c.training.batch, "steps": c.training.row_steps, "tokens_per_step": abstract.tokens_per_step}
    useful = model_flops(c.model, abstract.state.params, **sizes)
    seq = c.mesh.seq
    halves = seq > 1 and c.mesh.exchange == "ring"
    stripe = (c.mesh.stripe or 1) * abstract.tokens_per_step
    ring = Ring(abstract.row_tokens, seq, c.mesh.ring_layout, stripe, halves)
    executed = executed_flops(traced.jaxpr.jaxpr, ring)
    traffic: Traffic | None = None
    bound: tuple[float | None, str | None] = (None, None)
    if compilation.program is not None:
        traffic = read_traffic(read_transfers(compilation.program))
        if accelerator is not None and executed is not None:
            # Each argument is read and written, and so is what is kept for the backward pass.
            kept = sum(buffer.bytes for buffer in compilation.memory.temporaries if is_kept(buffer, c.model.layers))
            passing = 2.0 * (sum(abstract.argument_bytes().values()) + kept)
            shares = {"useful": useful / devices, "executed": executed / devices}
            ring_bytes = ring_bandwidth(accelerator, abstract.mesh)
            bound = mfu_bound(accelerator, **shares, traffic=traffic, hbm_bytes=passing, ring=ring_bytes)
    return {
        "model_flops": useful,
        "executed_flops": executed,
        "traffic": None if traffic is None else asdict(traffic),
        "mfu_bound": bound[0],
        "mfu_bound_by": bound[1],
    }
