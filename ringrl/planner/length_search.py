"""The search for the longest context, of a training row or of a cache, whose program fits on TPUs or GPUs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ringrl.errors import UserError
from ringrl.planner.compiled import CompilerError

_WHOLE_BLOCK = 1024
"""Stretches of a device's tokens that are longer are multiples of this, so that kernels' blocks stay whole."""

_MAX_GROWTH = 8
"""A length is tried that is at most so many times the longest that fitted."""


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


class LengthSearch:
    """The lengths tried so far, in steps, and which to try next.

    Memory is nearly a straight line over the length, so the next to try is where the line through the last two sizes
    meets the device's memory, or its host's.
    """

    def __init__(
        self, plan: Callable[[int], Any], pieces: int, tokens_per_step: int, on_attempt: Callable[[Attempt], None]
    ):
        """What is searched.

        Args:
            plan: compiles for so many steps: an object with `fits`, `bytes_per_device`, `hbm_bytes`,
                `host_bytes_per_device`, `host_bytes_available` and `reason`; may raise `CompilerError`.
            pieces: a length must be a multiple of them.
            tokens_per_step: of the model.
            on_attempt: called after each compilation.
        """
        self._plan, self._on_attempt, self.tokens_per_step = plan, on_attempt, tokens_per_step
        self._smallest, self._unit = pieces, pieces * _WHOLE_BLOCK // math.gcd(_WHOLE_BLOCK, tokens_per_step)
        self.attempts: list[Attempt] = []
        self.plan: Any = None  # of the longest that fits
        self.hbm: int | None = None
        self.host: int | None = None  # memory of a host, a device's share

    def run(self, start: int, precision: float) -> None:
        """Compile until the shortest that does not fit is at most this share longer than the longest that does.

        Raises UserError where precision is not in (0, 1].
        """
        if not 0 < precision <= 1:
            raise UserError(f"precision {precision}: give a share above 0 and at most 1, such as 0.125")
        steps: int | None = self._round(start)
        while steps is not None:
            self._attempt(steps)
            steps = self._next(precision)

    def _round(self, steps: int | float) -> int:
        """The nearest length below that can be cut evenly, and above the smallest whole blocks."""
        unit = self._unit if steps >= self._unit else self._smallest
        return max(int(steps // unit) * unit, self._smallest)

    def _attempt(self, steps: int) -> None:
        began = time.perf_counter()
        plan, reason = None, None
        try:
            plan = self._plan(steps)
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
            if fits and steps > self.longest:
                self.plan = plan
        sizes = (plan.bytes_per_device, plan.host_bytes_per_device) if plan else (None, None)
        seconds = round(time.perf_counter() - began, 1)
        self.attempts.append(Attempt(steps, steps * self.tokens_per_step, fits, *sizes, seconds, reason))
        self._on_attempt(self.attempts[-1])

    @property
    def longest(self) -> int:
        """Steps of the longest that fits; 0 where none does."""
        return max((a.row_steps for a in self.attempts if a.fits), default=0)

    @property
    def shortest(self) -> int | None:
        """Steps of the shortest that does not fit; None where all do."""
        return min((a.row_steps for a in self.attempts if not a.fits), default=None)

    def _next(self, precision: float) -> int | None:
        """Steps to try next; None where the search is over."""
        low, high, expected = self.longest, self.shortest, self._expected()
        if high is None:
            farthest = _MAX_GROWTH * low
            guess = min(expected or 2 * low, farthest)
            return max(self._round(guess), self._round(low * (1 + precision)), low + self._step(low))
        if high - low <= max(precision * low, self._step(low)):
            return None
        # Just inside the answer's last interval if the line is right, so that two more attempts end the search.
        lowest, highest = low + self._step(low), high - self._step(low)
        middle = (low + high) / 2
        guess = middle if expected is None or self._missed() else expected
        if low:
            guess = max(guess, low * (1 + precision / 2))
        guess = min(guess, high / (1 + precision / 2))
        return min(max(self._round(guess), lowest), highest)

    def _step(self, low: int) -> int:
        return self._unit if low >= self._unit else self._smallest

    def _missed(self) -> bool:
        """Whether the line has predicted badly: then the interval is halved."""
        return len(self.attempts) > 4

    def _expected(self) -> float | None:
        """Steps at which a device's memory, or its host's, is full."""
        hbm = [(a.row_steps, a.bytes_per_device) for a in self.attempts if a.bytes_per_device is not None]
        host = [(a.row_steps, a.host_bytes_per_device) for a in self.attempts if a.host_bytes_per_device]
        full = (_meeting(hbm, self.hbm), _meeting(host, self.host))
        return min((steps for steps in full if steps is not None), default=None)


def _meeting(points: list[tuple[int, int]], limit: int | None) -> float | None:
    """Where the line through the two points nearest to `limit` meets it; None where no line rises to it."""
    if limit is None or len(points) < 2:
        return None
    (x1, y1), (x2, y2) = sorted(sorted(points, key=lambda point: abs(point[1] - limit))[:2])
    return None if y2 <= y1 else x1 + (limit - y1) * (x2 - x1) / (y2 - y1)
