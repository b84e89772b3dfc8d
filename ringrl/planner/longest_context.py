"""The longest row whose training step still compiles for a slice of TPUs or for GPUs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ringrl.agent import make_decoder
from ringrl.config import RunConfig
from ringrl.planner.abstract_step import change, fit_mesh
from ringrl.planner.compiled import CompiledPlan, plan_training_step
from ringrl.planner.length_search import Attempt, LengthSearch
from ringrl.planner.topology import find_devices


@dataclass(frozen=True)
class MaxContext:
    """The longest row that fits, and how it was found. Bytes are those of one device at that row."""

    topology: str
    devices: int
    device_kind: str | None
    mesh: dict[str, int] | None
    max_context: int  # tokens of the longest row that fits; 0 where none does
    row_steps: int  # the same in steps: `training.row_steps`
    tokens: int  # in a training step, over all rows
    too_long: int | None  # tokens of the shortest row that was tried and does not fit
    bytes_per_device: int | None
    host_bytes_per_device: int | None
    host_bytes_available: int | None
    hbm_bytes: int | None
    parameters: int | None
    mfu_bound: float | None  # by the roofline; not a measurement
    precision: float  # the next longer row, by this share, does not fit or was not tried
    seconds: float
    attempts: list[Attempt] = field(default_factory=list)
    plan: CompiledPlan | None = None  # of the longest row that fits


def find_max_context(
    config: RunConfig,
    topology: str,
    *,
    precision: float = 1 / 8,
    start: int | None = None,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> MaxContext:
    """Compile `config` for ever longer rows, then between the longest that fits and the shortest that does not.

    Memory is nearly a straight line over the row's length, so the next row to try is where the line through the
    last two sizes meets the device's memory, or its host's. A row that ends in any other error of the compiler counts
    as too long, and so does one whose offloaded arrays are more than the host's memory, where that is known.

    Args:
        config: whose `training.row_steps` is changed; all else stays, `training.batch` too.
        topology: the slice, such as v5e:16x16.
        precision: search until the shortest row that does not fit is at most this share longer than the longest.
        start: steps of the first row; None: the config's.
        on_attempt: called after each compilation.

    Raises:
        UserError: precision is not in (0, 1], no such slice, no compiler for it, or slice and mesh do not divide.
    """
    began = time.perf_counter()
    devices = len(find_devices(topology))
    others = math.prod((config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.heads))
    seq = devices // others if devices % others == 0 else config.mesh.seq
    pieces = config.mesh.model_copy(update={"seq": seq}).pieces * config.mesh.heads
    # The first row must divide over the config's own mesh as well, until `fit_mesh` has changed that.
    first = math.lcm(pieces, config.mesh.pieces * config.mesh.heads)
    fitted, _ = fit_mesh(_with_row(config, first, topology), topology, devices)

    def plan(steps: int) -> CompiledPlan:
        return plan_training_step(_with_row(fitted, steps, topology), topology)

    search = LengthSearch(plan, pieces, make_decoder(config.agent).tokens.tokens_per_step, on_attempt)
    search.run(config.training.row_steps if start is None else start, precision)
    return _result(search, topology, devices, config.training.batch, precision, time.perf_counter() - began)


def _result(
    search: LengthSearch, topology: str, devices: int, batch: int, precision: float, seconds: float
) -> MaxContext:
    plan: CompiledPlan | None = search.plan
    t = search.tokens_per_step
    return MaxContext(
        topology=topology,
        devices=devices,
        device_kind=plan.device_kind if plan else None,
        mesh=plan.mesh if plan else None,
        max_context=search.longest * t,
        row_steps=search.longest,
        tokens=search.longest * t * batch,
        too_long=None if search.shortest is None else search.shortest * t,
        bytes_per_device=plan.bytes_per_device if plan else None,
        host_bytes_per_device=plan.host_bytes_per_device if plan else None,
        host_bytes_available=plan.host_bytes_available if plan else None,
        hbm_bytes=search.hbm,
        parameters=plan.parameters if plan else None,
        mfu_bound=plan.mfu_bound if plan else None,
        precision=precision,
        seconds=round(seconds, 1),
        attempts=list(search.attempts),
        plan=plan,
    )


def _with_row(config: RunConfig, steps: int, topology: str) -> RunConfig:
    return change(config, "training", "row_steps", steps, f"{topology} with training.row_steps={steps}")
