"""metrics.jsonl and the progress line; tokens per second and model FLOPs utilisation."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ringrl.accelerators import find_accelerator
from ringrl.config import RunConfig
from ringrl.errors import UserError, unwritable
from ringrl.files import write_bytes
from ringrl.metrics_lines import format_line, parse_line
from ringrl.model.flops import model_flops, visible_share
from ringrl.run import RunDirectory

_NEVER = 1 << 62


@cache
def peak_flops() -> tuple[float, bool]:
    """FLOP/s of one device, and whether they were measured here.

    Published bfloat16 peaks (`ringrl.accelerators`) where known; else those of a matrix product that is timed, in
    float32 on a CPU and in bfloat16 elsewhere. Simulated CPU devices share the machine's cores, and so its peak.
    """
    known = find_accelerator(jax.devices()[0].device_kind)
    if known is not None:
        return known.flops, False
    cpu = jax.default_backend() == "cpu"
    size, dtype = (1536, jnp.float32) if cpu else (8192, jnp.bfloat16)
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds) / (jax.device_count() if cpu else 1), True


class MetricsLog:
    """Writes a line a logged step, and shows how far the run is. A context manager.

    Resuming at step s drops the lines after s, which a killed run may have written beyond its last checkpoint.
    """

    def __init__(self, run: Path, steps: int, start: int, label: str):
        self._path = RunDirectory(run).metrics_file
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        console = Console()
        self._plain = not console.is_terminal  # a bar cannot be redrawn in a file or a pipe: those get lines
        self._progress = Progress(*columns, console=console, disable=self._plain)
        self._task = self._progress.add_task(label, total=steps, completed=start)
        self._label, self._steps, self._start, self._began = label, steps, start, time.monotonic()

    def __enter__(self) -> "MetricsLog":
        """Begin, or go on with, the file. UserError where it cannot be written."""
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step(line) <= self._start]
        try:
            write_bytes(self._path, b"".join(line + b"\n" for line in kept))
            self._file = self._path.open("ab")
        except OSError as error:
            raise unwritable(self._path, error) from error
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        with suppress(OSError):  # of a full disk: what is logged is written at once, and was an error then
            self._file.close()

    def advance(self, step: int) -> None:
        """So many steps are done."""
        self._progress.update(self._task, completed=step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write a line of metrics.jsonl, at once: a killed run keeps what it logged. UserError where it cannot be."""
        try:
            self._file.write(format_line({"step": step} | values))
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error
        said = f"loss {values['loss']:.4f}"
        if "validation_loss" in values:
            said += f", validation loss {values['validation_loss']:.4f}"
        self._progress.update(self._task, description=f"{self._label}  {said}")
        if self._plain:
            left = (time.monotonic() - self._began) * (self._steps - step) / (step - self._start)
            print(
                f"{self._label}: step {step}/{self._steps}, {said}, "
                f"{values['tokens_per_s']:,.0f} tokens/s, ETA {timedelta(seconds=round(left))}",
                flush=True,
            )


class NoMetricsLog:
    """What the processes other than the first do with metrics: nothing."""

    def __enter__(self) -> "NoMetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, step: int) -> None:
        """As `MetricsLog.advance`."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """As `MetricsLog.log`."""


def _step(line: bytes) -> int:
    """The step of a line; one that a kill cut short, or that is damaged, counts as never written: it is but a log."""
    try:
        return parse_line(line, "metrics.jsonl").get("step", _NEVER)
    except UserError:
        return _NEVER


class Clock:
    """Turns seconds into tokens a second, model FLOPs utilisation and the share of time spent waiting for data.

    Every line also says which peak its utilisation refers to: `peak_flops` of all devices, and `peak_measured`, 1
    where a matrix product was timed on this machine and 0 where the peak is the maker's (see `peak_flops`).
    """

    def __init__(self, config: RunConfig, tokens_per_step: int, params: Mapping[str, Any], devices: int):
        rows, steps = config.training.batch, config.training.row_steps
        self._tokens, self._steps = rows * steps * tokens_per_step, steps
        self._flops = partial(
            model_flops, config.model, params, rows=rows, steps=steps, tokens_per_step=tokens_per_step
        )
        self._visible: list[float] = []  # of each batch since the last lap
        peak, measured = peak_flops()
        self._peak, self._measured = peak * devices, float(measured)
        self._started, self._waited, self._done = time.perf_counter(), 0.0, 0
        self._batches, self._watcher = 0, ThreadPoolExecutor(1)

    @contextmanager
    def waiting(self, before: object = None) -> Iterator[None]:
        """While the next batch comes.

        Counted is the time in which the devices had nothing to do: from the moment at which they have done `before`,
        what the last step returns, which is mostly still being computed when its caller continues. These are this
        process's devices and its loader: another process's late loader shows only as slow steps.

        With the second batch the clock starts again, at the moment at which the first step was done, for which this
        waits: until then it was being compiled, and computed.
        """
        entered = time.perf_counter()
        self._batches += 1
        done = self._watcher.submit(_time_of, before)
        yield
        left = time.perf_counter()
        if self._batches == 2 and self._done == 0:
            self._started, self._waited, self._done = done.result(), 0.0, 1
        if done.done():
            self._waited += left - min(max(entered, done.result()), left)

    def count(self, batch: Mapping[str, np.ndarray]) -> None:
        """Note how much of a batch's rows attention sees, for the utilisation: of this process's share of the batch."""
        self._visible.append(visible_share(batch["position"], batch["segment_ids"], steps=self._steps))

    def lap(self, step: int, done: int) -> dict[str, float]:
        """Rates since the last lap, for a run that is at `step` and has done `done` steps since it was started."""
        now = time.perf_counter()
        seconds, steps = now - self._started, done - self._done
        flops = self._flops(visible=float(np.mean(self._visible)) if self._visible else 1.0)
        rates = {
            "tokens": float(step * self._tokens),
            "tokens_per_s": steps * self._tokens / seconds,
            "mfu": steps * flops / seconds / self._peak,
            "peak_flops": self._peak,
            "peak_measured": self._measured,
            "loader_wait": self._waited / seconds,
        }
        self._started, self._waited, self._done, self._visible = now, 0.0, done, []
        return rates


def _time_of(values: object) -> float:
    """When `values` are computed, by the clock of `time.perf_counter`."""
    jax.block_until_ready(values)
    return time.perf_counter()
