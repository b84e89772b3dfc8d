"""The longest row whose training step still compiles for a slice of TPUs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ringrl.agent import make_decoder
from ringrl.attention.layout import runs_per_shard
from ringrl.config import RunConfig
from ringrl.errors import UserError
from ringrl.planner.abstract_step import change, fit_mesh
from ringrl.planner.compiled import CompiledPlan, CompilerError, plan_training_step
from ringrl.planner.topology import find_devices

_WHOLE_BLOCK = 1024
"""Stretches of a device's tokens that are longer are multiples of this, so that kernels' blocks stay whole."""

_MAX_GROWTH = 8
"""A row is tried that is at most so many times as long as the longest that fitted."""


@dataclass(frozen=True)
class Attempt:
    """One compilation."""

    row_steps: int
    row_tokens: int
    fits: bool
    bytes_per_device: int | None  # None where the compiler failed before that
    host_bytes_per_device: int | None
    seconds: float
    reason: str | None  # the compiler's sentence where it does not fit


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
        UserError: precision is not in (0, 1], no such slice, libtpu missing, or the slice and the mesh do not divide.
    """
    if not 0 < precision <= 1:
        raise UserError(f"precision {precision}: give a share above 0 and at most 1, such as 0.125")
    began = time.perf_counter()
    search = _Search(config, topology, on_attempt)
    steps = search.round(config.training.row_steps if start is None else start)
    while steps is not None:
        search.attempt(steps)
        steps = search.next(precision)
    return search.result(precision, time.perf_counter() - began)


class _Search:
    """The rows tried so far, and which to try next."""

    def __init__(self, config: RunConfig, topology: str, on_attempt: Callable[[Attempt], None]):
        self.topology, self.on_attempt = topology, on_attempt
        self.devices = len(find_devices(topology))
        seq = config.mesh.seq
        others = math.prod((config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.heads))
        if others and self.devices % others == 0:
            seq = self.devices // others
        pieces = seq * runs_per_shard(seq, config.mesh.layout) * config.mesh.heads
        self.tokens_per_step = make_decoder(config.agent).tokens.tokens_per_step
        self.smallest = pieces
        self.unit = pieces * _WHOLE_BLOCK // math.gcd(_WHOLE_BLOCK, self.tokens_per_step)
        # The first row must divide over the config's own mesh as well, until `fit_mesh` has changed that.
        first = math.lcm(
            pieces, config.mesh.seq * runs_per_shard(config.mesh.seq, config.mesh.layout) * config.mesh.heads
        )
        self.config, _ = fit_mesh(_with_row(config, first, topology), topology, self.devices)
        self.attempts: list[Attempt] = []
        self.plan: CompiledPlan | None = None  # of the longest row that fits
        self.hbm: int | None = None
        self.host: int | None = None  # memory of a host, a device's share

    def round(self, steps: int | float) -> int:
        """The nearest row below that the mesh and the layout can cut evenly, and above the smallest whole blocks."""
        unit = self.unit if steps >= self.unit else self.smallest
        return max(int(steps // unit) * unit, self.smallest)

    def attempt(self, steps: int) -> None:
        """Compile a row."""
        began = time.perf_counter()
        plan, reason = None, None
        try:
            plan = plan_training_step(_with_row(self.config, steps, self.topology), self.topology)
            reason = plan.reason
        except CompilerError as error:
            reason = str(error)
        fits = plan is not None and plan.fits
        if plan is not None:
            self.hbm, self.host = plan.hbm_bytes, plan.host_bytes_available
            if fits and self.host is not None and plan.host_bytes_per_device > self.host:
                fits = False
                reason = (
                    f"offloading takes {plan.host_bytes_per_device:,} bytes a device of a host that has {self.host:,}"
                )
            if fits and (self.plan is None or plan.row_tokens > self.plan.row_tokens):
                self.plan = plan
        sizes = (plan.bytes_per_device, plan.host_bytes_per_device) if plan else (None, None)
        seconds = round(time.perf_counter() - began, 1)
        self.attempts.append(Attempt(steps, steps * self.tokens_per_step, fits, *sizes, seconds, reason))
        self.on_attempt(self.attempts[-1])

    @property
    def longest(self) -> int:
        """Steps of the longest row that fits; 0 where none does."""
        return max((a.row_steps for a in self.attempts if a.fits), default=0)

    @property
    def shortest(self) -> int | None:
        """Steps of the shortest row that does not fit; None where all do."""
        return min((a.row_steps for a in self.attempts if not a.fits), default=None)

    def next(self, precision: float) -> int | None:
        """Steps of the row to try next; None where the search is over."""
        low, high, expected = self.longest, self.shortest, self._expected()
        if high is None:
            farthest = _MAX_GROWTH * low
            guess = min(expected or 2 * low, farthest)
            return max(self.round(guess), self.round(low * (1 + precision)), low + self._step(low))
        if high - low <= max(precision * low, self._step(low)):
            return None
        # Just inside the answer's last interval if the line is right, so that two more attempts end the search.
        lowest, highest = low + self._step(low), high - self._step(low)
        middle = (low + high) / 2
        guess = middle if expected is None or self._missed() else expected
        if low:
            guess = max(guess, low * (1 + precision / 2))
        guess = min(guess, high / (1 + precision / 2))
        return min(max(self.round(guess), lowest), highest)

    def _step(self, low: int) -> int:
        return self.unit if low >= self.unit else self.smallest

    def _missed(self) -> bool:
        """Whether the line has predicted badly: then the interval is halved."""
        return len(self.attempts) > 4

    def _expected(self) -> float | None:
        """Steps at which a device's memory, or its host's, is full."""
        hbm = [(a.row_steps, a.bytes_per_device) for a in self.attempts if a.bytes_per_device is not None]
        host = [(a.row_steps, a.host_bytes_per_device) for a in self.attempts if a.host_bytes_per_device]
        full = (_meeting(hbm, self.hbm), _meeting(host, self.host))
        return min((steps for steps in full if steps is not None), default=None)

    def result(self, precision: float, seconds: float) -> MaxContext:
        """What was found."""
        plan, t = self.plan, self.tokens_per_step
        return MaxContext(
            topology=self.topology,
            devices=self.devices,
            device_kind=plan.device_kind if plan else None,
            mesh=plan.mesh if plan else None,
            max_context=self.longest * t,
            row_steps=self.longest,
            tokens=self.longest * t * self.config.training.batch,
            too_long=None if self.shortest is None else self.shortest * t,
            bytes_per_device=plan.bytes_per_device if plan else None,
            host_bytes_per_device=plan.host_bytes_per_device if plan else None,
            host_bytes_available=plan.host_bytes_available if plan else None,
            hbm_bytes=self.hbm,
            parameters=plan.parameters if plan else None,
            mfu_bound=plan.mfu_bound if plan else None,
            precision=precision,
            seconds=round(seconds, 1),
            attempts=list(self.attempts),
            plan=plan,
        )


def _with_row(config: RunConfig, steps: int, topology: str) -> RunConfig:
    return change(config, "training", "row_steps", steps, f"{topology} with training.row_steps={steps}")


def _meeting(points: list[tuple[int, int]], limit: int | None) -> float | None:
    """Where the line through the two points nearest to `limit` meets it; None where no line rises to it."""
    if limit is None or len(points) < 2:
        return None
    (x1, y1), (x2, y2) = sorted(sorted(points, key=lambda point: abs(point[1] - limit))[:2])
    return None if y2 <= y1 else x1 + (limit - y1) * (x2 - x1) / (y2 - y1)
