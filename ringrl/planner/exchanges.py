"""Which way over the mesh is best for a config's attention: bytes and memory of each, from the compiled program."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.table import Table

from ringrl.accelerators import Accelerator, find_accelerator
from ringrl.agent import make_decoder
from ringrl.attention import Exchange, compiler_options, ring_attention
from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.model.sharding import TOKENS
from ringrl.planner.bound import ring_bandwidth
from ringrl.planner.plan_table import numbers_table
from ringrl.planner.schedule import read_transfers
from ringrl.planner.topology import find_devices
from ringrl.training.mesh import make_mesh

_PRODUCTS = 9
"""Matrix products of one layer's attention, forward and backward, as the TPU kernels compute them (2, 3 and 4)."""


@dataclass(frozen=True)
class ExchangePlan:
    """One way to attend over all devices: one layer, forward and backward. Bytes are those of one device."""

    exchange: str  # ring or all_gather
    seq: int  # devices, or groups of devices, along the ring
    heads: int  # devices in such a group, which exchange heads
    fits: bool
    sent_bytes: int | None
    waited_bytes: int | None  # of these, what no matrix product runs behind
    temporary_bytes: int | None
    computing_ms: float  # at the chip's peak
    sending_ms: float | None  # over one link, one way
    estimate_ms: float | None  # the longer of computing and hidden sending, and then what is waited for


def plan_exchanges(config: RunConfig, topology: str) -> list[ExchangePlan]:
    """Compile every way over the devices that `data`, `fsdp` and `tensor` leave; the fastest by estimate first.

    The times are ideal ones: peak FLOPs shared evenly, one link one way (between
    hosts of GPUs their network), no latency, and an all-to-all or all-gather as
    if its devices were neighbours. They order the ways; they are no forecast.

    Raises:
        UserError: no such slice, its compiler missing, its chips have no figures, or the row divides over it in no way.
    """
    devices = find_devices(topology)
    others = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    accelerator = find_accelerator(devices[0].device_kind)
    if accelerator is None:
        raise UserError(f"{topology}: {devices[0].device_kind} has no figures in ringrl/accelerators.py to compare by")
    if len(devices) % others or len(devices) == others:
        raise UserError(
            f"{topology} has {len(devices)} devices, of which data x fsdp x tensor = {others} must leave some for "
            "sequences: choose a larger slice, or mesh sizes whose product divides it"
        )
    ways = list(_ways(config, len(devices) // others))
    if not ways:
        raise UserError(
            f"training.row_steps {config.training.row_steps} divides over {len(devices) // others} devices in no way: "
            "it must be a multiple of them, and of what the layout asks for (twice the ring in zigzag)"
        )
    plans = [_compile(config, accelerator, devices, *way) for way in ways]
    return sorted(plans, key=lambda plan: (not plan.fits, plan.estimate_ms or 0.0))


def _ways(config: RunConfig, devices: int) -> Iterator[tuple[str, int, int]]:
    """(exchange, seq, heads): a ring, all-gather, and rings of groups that exchange heads, as far as all divides."""
    ring, gathered = get_args(Exchange)
    for heads in range(1, devices + 1):
        seq = devices // heads
        pieces = config.mesh.model_copy(update={"seq": seq}).pieces
        if devices % heads or config.model.heads // config.mesh.tensor % heads:
            continue
        if config.training.row_steps % devices == 0 and config.training.row_steps % pieces == 0:
            yield ring, seq, heads
            if heads == 1:
                yield gathered, seq, heads


def _compile(
    config: RunConfig, accelerator: Accelerator, devices: list[Any], exchange: str, seq: int, heads: int
) -> ExchangePlan:
    c, m = config.mesh, config.model
    rows = config.training.batch // config.optimizer.accumulation
    tokens = make_decoder(config.agent).tokens.tokens_per_step
    length = config.training.row_steps * tokens
    mesh = make_mesh(c.model_copy(update={"seq": seq, "heads": heads}), devices)
    spec = P(*TOKENS, "tensor")
    attend = jax.shard_map(
        partial(
            ring_attention,
            axis_name=("seq", "heads") if heads > 1 else "seq",
            layout=c.ring_layout,
            stripe=(c.stripe or 1) * tokens,
            exchange=exchange,  # pyright: ignore[reportArgumentType]
        ),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )

    def train(q: jax.Array, k: jax.Array, v: jax.Array, weights: jax.Array) -> Any:
        out, backward = jax.vjp(attend, q, k, v)
        return out, backward(weights)

    def shape(n: int) -> jax.ShapeDtypeStruct:
        size = (rows, length, n, m.width // m.heads)
        return jax.ShapeDtypeStruct(size, jnp.dtype(m.compute_dtype), sharding=NamedSharding(mesh, spec))

    step = jax.jit(train, compiler_options=compiler_options(devices[0].platform))
    flops = _PRODUCTS * rows * m.width * length**2 / len(devices)  # 2 for a multiply-add, half for causality
    computing = flops / accelerator.flops
    try:
        compiled = step.lower(shape(m.heads), shape(m.kv_heads), shape(m.kv_heads), shape(m.heads)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return ExchangePlan(exchange, seq, heads, False, None, None, None, computing * 1e3, None, None)
    return _read(compiled, ring_bandwidth(accelerator, mesh), exchange, seq, heads, computing)


def _read(compiled: Any, bandwidth: float, exchange: str, seq: int, heads: int, computing: float) -> ExchangePlan:
    transfers = read_transfers(compiled.as_text())
    sent = sum(t.sent_bytes * t.times for t in transfers)
    waited = sum(t.sent_bytes * t.times for t in transfers if not t.hidden_by)
    estimate = max(computing, (sent - waited) / bandwidth) + waited / bandwidth
    return ExchangePlan(
        exchange=exchange,
        seq=seq,
        heads=heads,
        fits=True,
        sent_bytes=sent,
        waited_bytes=waited,
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        computing_ms=computing * 1e3,
        sending_ms=sent / bandwidth * 1e3,
        estimate_ms=estimate * 1e3,
    )


def to_table(plans: list[ExchangePlan], title: str) -> Table:
    """A row for each way, the best first; `exchange`, `seq` and `heads` are the settings of `mesh` that choose it."""
    columns = ("seq", "heads", "sent", "waited for", "temporaries", "computing", "sending", "estimate")
    table = numbers_table(title, "exchange", *columns)
    for plan in plans:
        sizes = (plan.sent_bytes, plan.waited_bytes, plan.temporary_bytes)
        cells = ["too much" if size is None else f"{size / 2**20:,.0f} MiB" for size in sizes]
        times = (plan.computing_ms, plan.sending_ms, plan.estimate_ms)
        cells += ["" if time is None else f"{time:,.2f} ms" for time in times]
        table.add_row(plan.exchange, str(plan.seq), str(plan.heads), *cells)
    return table
