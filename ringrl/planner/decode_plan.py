"""Whether an agent step fits on TPUs or GPUs, with a cache of any length: the rollout's own program, compiled."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ringrl.accelerators import find_accelerator
from ringrl.agent import make_agent, make_decoder
from ringrl.attention import KVCache
from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.model.cached_decoder import CachedDecoder, room_for
from ringrl.model.sharding import AXES, BATCH_AXES
from ringrl.planner.abstract_step import fit_mesh, local_bytes, model_sizes, place_mesh
from ringrl.planner.compiled import compile_program
from ringrl.planner.hlo_sources import Sources
from ringrl.planner.length_search import Attempt, LengthSearch
from ringrl.planner.schedule import read_transfers
from ringrl.planner.topology import device_hbm_bytes, find_devices
from ringrl.training.state import build_model

_COMBINE = "ringrl/attention/decode.py:_combine"
_TENSOR = "ringrl/model/layer.py:OutputAndMLP"


@dataclass(frozen=True)
class Sent:
    """What a device sends in an agent step, bytes."""

    combination: int  # of the partial results of attention: a maximum and a sum
    combinations_per_layer: float  # collective operations for it: 2 on a ring, 0 on one device
    tensor: int  # sums over the devices that share a token's heads
    other: int  # anything else: raw outputs over data and fsdp; 0 without those


@dataclass(frozen=True)
class DecodePlan:
    """What the compiler assigned to an agent step. Bytes are those of one device."""

    topology: str  # as asked for, such as v5e:2x4
    device_kind: str  # the compiler's name of the chip, such as TPU v5 lite
    devices: int
    mesh: dict[str, int]  # devices along data, fsdp, tensor, seq, heads
    mesh_note: str | None  # how `mesh` differs from the config's; None where it is the config's
    fits: bool
    environments: int  # that act at once
    context_tokens: int  # of an environment, that the cache has room for
    cache_dtype: str
    slots: int  # of the cache of one environment on one device; a whole number of blocks
    bytes_per_device: int  # HBM that the compiler has assigned, or would have to
    parameter_bytes: int  # of these, the model
    cache_bytes: int  # of these, keys, values, their scales, and which tokens they are of
    temporary_bytes: int  # of these, the rest
    hbm_bytes: int  # that a program may fill
    host_bytes_per_device: int
    host_bytes_available: int | None
    parameters: int
    sent: Sent | None  # None where it does not fit
    read_bytes: int  # that an agent step reads with a full cache, at least: parameters and cache
    seconds_bound: float | None  # an agent step takes no less; by the roofline, not a measurement
    bound_by: str | None  # what sets it
    compile_seconds: float
    reason: str | None  # the compiler's own sentence where it does not fit


@dataclass(frozen=True)
class MaxCache:
    """The longest cache with which an agent step fits, and how it was found."""

    topology: str
    environments: int
    cache_dtype: str
    max_context: int  # tokens of an environment; 0 where none fits
    too_long: int | None  # tokens of the shortest that was tried and does not fit
    precision: float  # the next longer, by this share, does not fit or was not tried
    seconds: float
    attempts: list[Attempt] = field(default_factory=list)  # `row_tokens`: slots of all stations for an environment
    plan: DecodePlan | None = None  # of the longest that fits


def plan_decode(
    config: RunConfig,
    topology: str,
    *,
    environments: int = 1,
    context: int | None = None,
    cache_dtype: str | None = None,
) -> DecodePlan:
    """Compile an agent step of `config`'s agent, as a rollout on the slice `topology` takes it.

    The cache is as large as a rollout's. The call that fills it, and the model as it was restored, are not in the plan.
    The mesh is that of `plan_training_step`: the cache is spread over seq and heads, its heads over tensor,
    environments over data and fsdp; each device has the whole model but for tensor.

    Args:
        config: of the run.
        topology: the slice, such as v5e:4x8.
        environments: that act at once.
        context: tokens of an environment, of which whole agent steps are counted; None: a row's of the training.
        cache_dtype: float32, bfloat16 or int8; None: the model's compute dtype.

    Raises:
        UserError: no such slice, its compiler missing, the agent cannot act, or the slice, the mesh and the
            environments do not divide.
        CompilerError: the compiler failed, but not because HBM is too small.
    """
    step = _AgentStep(config, topology, environments, cache_dtype)
    return step.plan(step.row_tokens if context is None else context)


def find_max_cache(
    config: RunConfig,
    topology: str,
    *,
    environments: int = 1,
    context: int | None = None,
    cache_dtype: str | None = None,
    precision: float = 1 / 8,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> MaxCache:
    """The longest cache with which an agent step fits; `context` is the first to try. See `plan_decode`.

    Args:
        config: of the run.
        topology: the slice.
        environments: that act at once.
        context: tokens of an environment, the first to try.
        cache_dtype: see `plan_decode`.
        precision: search until the shortest that does not fit is at most this share longer than the longest.
        on_attempt: called after each compilation.

    Raises:
        UserError: precision is not in (0, 1], and as `plan_decode`.
    """
    began = time.perf_counter()
    step = _AgentStep(config, topology, environments, cache_dtype)
    t, stations = step.tokens_per_step, step.model.stations

    def room(steps: int) -> int:
        """The tokens of a context whose cache has slots for so many steps: a rollout's needs more than the context."""
        called = room_for(steps, t).call // t * (1 if stations == 1 else 2)  # on each station, see `slots_for`
        return max(steps - 1 - called * stations, 1) * t

    search = LengthSearch(lambda steps: step.plan(room(steps)), stations, t, on_attempt)
    search.run((step.row_tokens if context is None else context) // t, precision)
    return MaxCache(
        topology=topology,
        environments=environments,
        cache_dtype=str(step.model.cache_dtype),
        max_context=room(search.longest) if search.longest else 0,
        too_long=None if search.shortest is None else room(search.shortest),
        precision=precision,
        seconds=round(time.perf_counter() - began, 1),
        attempts=search.attempts,
        plan=search.plan,
    )


class _AgentStep:
    """The agent step of a config on a slice, for caches of any length."""

    def __init__(self, config: RunConfig, topology: str, environments: int, cache_dtype: str | None):
        if make_agent(config.agent).policy is None:
            raise UserError(f"{config.agent.name}: this agent cannot act, so it has no agent step to plan")
        decoder = make_decoder(config.agent)
        self.topology, self.environments, self.tokens_per_step = topology, environments, decoder.tokens.tokens_per_step
        devices = find_devices(topology)
        self.config, self.note = fit_mesh(config, topology, len(devices))
        self.mesh, sizes = place_mesh(self.config.mesh, devices, topology), model_sizes(config, decoder)
        self.device = self.mesh.devices.flat[0]
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if environments < 1 or environments % rows:
            raise UserError(
                f"{environments} environments do not divide over data x fsdp = {rows}: choose a multiple of {rows}"
            )
        self.model = CachedDecoder(nnx.eval_shape(lambda: build_model(config, decoder, sizes)), self.mesh, cache_dtype)
        sharding = NamedSharding(self.mesh, P(BATCH_AXES))
        self.fields = {
            name: jax.ShapeDtypeStruct(field.shape((environments, 1), sizes), field.dtype, sharding=sharding)
            for name, field in decoder.schema.items()
        }

    @property
    def row_tokens(self) -> int:
        """Tokens of a row of the training."""
        return self.config.training.row_steps * self.tokens_per_step

    def plan(self, context: int) -> DecodePlan:
        """Compile with a cache for so many tokens of an environment."""
        if context < self.tokens_per_step:
            raise UserError(f"a context of {context} tokens: give {self.tokens_per_step} or more")
        start = time.perf_counter()
        room = room_for(context // self.tokens_per_step, self.tokens_per_step)
        cache = self.model.shapes(self.environments, *room)
        hbm = device_hbm_bytes(self.device)
        compilation = compile_program(partial(self.model.lower_step, self.fields, cache), {}, hbm)
        memory, params = compilation.memory, _bytes(self.model.params)
        sent = None if compilation.program is None else self._sent(compilation.program)
        read = self._read_bytes(cache, context)
        bound = (None, None) if sent is None else self._bound(read, sent)
        return DecodePlan(
            topology=self.topology,
            device_kind=self.device.device_kind,
            devices=self.mesh.size,
            mesh={axis: int(self.mesh.shape[axis]) for axis in AXES},
            mesh_note=self.note,
            fits=compilation.reason is None,
            environments=self.environments,
            context_tokens=context,
            cache_dtype=str(self.model.cache_dtype),
            slots=cache.stored.k.shape[2] // self.model.stations,
            bytes_per_device=memory.hbm,
            parameter_bytes=params,
            cache_bytes=_bytes(cache),
            temporary_bytes=memory.hbm - params - _bytes(cache),
            hbm_bytes=hbm,
            host_bytes_per_device=memory.host,
            host_bytes_available=None,
            parameters=sum(x.size for x in jax.tree.leaves(self.model.params)),
            sent=sent,
            read_bytes=read,
            seconds_bound=bound[0],
            bound_by=bound[1],
            compile_seconds=round(time.perf_counter() - start, 2),
            reason=compilation.reason,
        )

    def _sent(self, program: str) -> Sent:
        sources, sums, calls = Sources(program), {"combination": 0, "tensor": 0, "other": 0}, 0
        for transfer in read_transfers(program):
            frames = sources.of(transfer.name)
            kind = "combination" if _COMBINE in frames else "other"
            kind = "tensor" if any(frame.startswith(_TENSOR) for frame in frames) else kind
            sums[kind] += transfer.sent_bytes * transfer.times
            calls += transfer.times if kind == "combination" else 0
        return Sent(combinations_per_layer=calls / self.config.model.layers, **sums)

    def _read_bytes(self, cache: KVCache, context: int) -> int:
        """Parameters but for tables, of which a few rows are read; the cache as far as a full context fills it."""
        tables = [
            local_bytes(x)
            for path, x in jax.tree_util.tree_leaves_with_path(self.model.params)
            if any(getattr(part, "key", getattr(part, "name", None)) == "embedding" for part in path)
        ]
        filled = context / cache.stored.k.shape[2]
        return _bytes(self.model.params) - sum(tables) + round(_bytes(cache) * filled)

    def _bound(self, read: int, sent: Sent) -> tuple[float | None, str | None]:
        accelerator = find_accelerator(self.device.device_kind)
        if accelerator is None:
            return None, None
        bandwidth = accelerator.link_bandwidth * accelerator.links
        seconds = {
            "HBM": read / accelerator.hbm_bandwidth,
            "transfers": (sent.combination + sent.tensor + sent.other) / bandwidth,
        }
        slowest = max(seconds, key=lambda name: seconds[name])
        return seconds[slowest], slowest


def _bytes(tree: Any) -> int:
    return sum(local_bytes(x) for x in jax.tree.leaves(tree))
