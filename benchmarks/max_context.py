"""The longest contexts that train: Ring Attention's Table 3 (arXiv 2310.01889), and what the real compilers say of it.

    python -m benchmarks.max_context                     # every cell; an hour or two, each compilation takes a minute
    python -m benchmarks.max_context --gpus              # A100 and H100, by XLA's CUDA compiler: 25 minutes
    python -m benchmarks.max_context --slices v5e:16x16  # one slice's
    python -m benchmarks.max_context --out docs/results/max_context.json

LLaMA shapes with their vocabulary of 32,000 ids (`configs/llama_7b.yaml`, other sizes by `model.preset`): the whole
training step (bfloat16 compute, float32 parameters and AdamW, cross-entropy), a batch of one row, compiled ahead of
time for the slice by libtpu, or for the GPUs by XLA's CUDA compiler. Rows are the paper's length times 4, 6, 8, ...;
reported is the longest that the compiler accepts (on GPUs: that keeps to four fifths of the memory), with each layer's
input kept in HBM (`remat: full`) and in the host's memory (`remat: offload`), where it must be within a device's share
of a host's (of GPUs' hosts not known). Nothing runs: it says what fits, not how fast; `ring waited for` is the share of
the ring's bytes that no computation hides in the compiler's own schedule.

Below, the paper's reinforcement-learning model (`configs/exorl_at_350m.yaml`): trajectories of 1000 steps of 4 tokens.
The last line is one JSON object: the rows of both tables.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tyro
from rich.console import Console
from rich.table import Table

from ringrl.config import RunConfig, load_config
from ringrl.planner.compiled import CompiledPlan, CompilerError, plan_training_step
from ringrl.planner.topology import find_devices

PAPER = {
    "v4:8x8x8": {"3b": 16384, "7b": 8192, "13b": 4096, "30b": 2048},
    "v3:16x16": {"7b": 2048, "13b": 1024},
    "v5e:16x16": {"3b": 4096, "7b": 2048},
}
"""Table 3, ring: slice -> model -> context, thousands (1024) of tokens. TPUv4-1024 counts cores, two a device."""

GPU_PAPER = {
    "a100:8": {"3b": 512, "7b": 256, "13b": 128},
    "a100:4x8": {"7b": 4096, "13b": 2048},
    "h100:8": {"7b": 256},
    "h100:16x8": {"7b": 4096},
}
"""The same of A100-80GB, 8 on NVLink and 32 on InfiniBand; H100 is beside them, 128 beside the 32."""

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
"""Multiples of the paper's context that are tried."""

HEAD_GROUPS = {"3b": 8, "7b": 8, "13b": 10, "30b": 13}
"""Groups of four heads: less of attention in memory at once, and as much to compute."""

RL_SLICES = ("v5e:2x4", "v5e:4x8", "v5e:16x16")
RL_GPUS = ("h100:1", "h100:8", "h100:8x8")
TRAJECTORY = 1000  # steps


@dataclass(frozen=True)
class Args:
    """Compile for every slice."""

    slices: tuple[str, ...] | None = None
    """Slices or GPUs of Table 3, and `rl` for the reinforcement-learning model; default all."""
    gpus: bool = False
    """GPUs instead of TPUs."""
    out: Path | None = None
    """Also write the JSON to this file; what it contains of other slices stays."""


@dataclass(frozen=True)
class SlicePlan:
    """One model on one slice, under one policy. Bytes are those of one device."""

    slice: str
    model: str
    remat: str
    paper_tokens: int
    tokens: int  # the longest context that compiles; 0: none that was tried
    ratio: float
    too_long: int | None  # the shortest context that was tried and does not
    mesh: dict[str, int] | None
    head_groups: int
    bytes_per_device: int | None
    hbm_bytes: int | None
    host_bytes: int | None
    host_bytes_available: int | None
    ring_waited: float | None  # share of the ring's bytes that nothing hides
    mfu_bound: float | None  # by the roofline; not a measurement
    compile_seconds: float | None


def configure(slice_: str, model: str, remat: str, tokens: int) -> RunConfig:
    """The training run of one cell."""
    devices = len(find_devices(slice_))
    # 3,200 numbers of width divide by 128: the rest of the devices exchange heads, so that all store parameters.
    heads = max(devices // 128, 1) if model == "3b" else 1
    mesh = f"mesh={{seq: {devices // heads}, heads: {heads}}}"
    groups = HEAD_GROUPS[model]
    if heads > 2 and remat == "offload":
        groups //= 2  # one head a device takes minutes to compile, and here two fit
    shape = (f"model.preset={model}", f"model.remat={remat}", f"model.head_groups={groups}", mesh)
    return load_config("llama_7b", (*shape, f"training.row_steps={tokens}"))


def longest(slice_: str, model: str, remat: str, console: Console) -> SlicePlan:
    """Climb the ladder from 16 times the paper's context (offloaded) or from 4 times, up or else down."""
    paper, best, failed = (PAPER | GPU_PAPER)[slice_][model] * 1024, None, None
    rung = LADDER.index(16 if remat == "offload" else 4)
    while 0 <= rung < len(LADDER):
        tokens, began = LADDER[rung] * paper, time.perf_counter()
        plan = attempt(configure(slice_, model, remat, tokens), slice_)
        console.print(f"{slice_} {model} {remat} {tokens:,}: {describe(plan)}, {time.perf_counter() - began:.0f} s")
        if plan is not None and plan.fits and plan.host_bytes_per_device <= (plan.host_bytes_available or math.inf):
            best, rung = plan, rung + 1
            if failed is not None:
                break
        else:
            failed, rung = tokens, rung - 1
            if best is not None:
                break
    config = configure(slice_, model, remat, paper)
    found = best.row_tokens if best else 0
    cell = SlicePlan(slice_, model, remat, paper, found, found / paper, failed, *[None] * 9)  # pyright: ignore
    cell = replace(cell, head_groups=config.model.head_groups)
    if best is None:
        return cell
    ring = best.traffic or {}
    return replace(
        cell,
        mesh=best.mesh,
        bytes_per_device=best.bytes_per_device,
        hbm_bytes=best.hbm_bytes,
        host_bytes=best.host_bytes_per_device,
        host_bytes_available=best.host_bytes_available,
        ring_waited=ring["ring_waited"] / ring["ring"] if ring.get("ring") else None,
        mfu_bound=best.mfu_bound,
        compile_seconds=best.compile_seconds,
    )


def attempt(config: RunConfig, slice_: str) -> CompiledPlan | None:
    """The compiler's answer; None where it fails for another reason than memory."""
    try:
        return plan_training_step(config, slice_)
    except CompilerError as error:
        print(f"  {str(error)[:200]}", flush=True)
        return None


def describe(plan: CompiledPlan | None) -> str:
    """What the compiler answered."""
    if plan is None:
        return "the compiler failed"
    sizes = (
        f"{plan.bytes_per_device / 2**30:.2f} GiB a device, {plan.host_bytes_per_device / 2**30:.1f} GiB of its host"
    )
    return ("fits, " if plan.fits else "too much, ") + sizes


def trajectories(slice_: str, console: Console) -> dict:
    """How many trajectories of 1000 steps the paper's RL model trains on at once, to a quarter."""
    from ringrl.planner.longest_context import find_max_context

    config = load_config("exorl_at_350m", ("model.remat=full", "model.head_groups=2"))
    found = find_max_context(
        config, slice_, precision=0.25, on_attempt=lambda a: console.print(f"{slice_} RL {a.row_tokens:,}: {a.fits}")
    )
    return {
        "slice": slice_,
        "tokens": found.max_context,
        "trajectories": found.row_steps // TRAJECTORY,
        "bytes_per_device": found.bytes_per_device,
        "hbm_bytes": found.hbm_bytes,
        "host_bytes": found.host_bytes_per_device,
        "too_long": found.too_long,
    }


def main(args: Args) -> None:
    """Compile, print both tables, write the JSON."""
    console = Console(width=140)
    of_paper = GPU_PAPER if args.gpus else PAPER
    slices = args.slices or (*of_paper, "rl")
    known = json.loads(args.out.read_text()) if args.out and args.out.exists() else {"table3": [], "rl": []}
    cells = [cell for cell in known["table3"] if cell["slice"] not in slices]
    rl = [] if "rl" in slices else known["rl"]
    for slice_ in slices:
        if slice_ == "rl":
            rl = [trajectories(each, console) for each in (RL_GPUS if args.gpus else RL_SLICES)]
            continue
        for model in of_paper[slice_]:
            cells += [asdict(longest(slice_, model, remat, console)) for remat in ("full", "offload")]
    console.print(to_table(cells))
    if rl:
        console.print(rl_table(rl))
    answer = json.dumps({"table3": cells, "rl": rl})
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(answer + "\n")
    print(answer)


def to_table(cells: list[dict]) -> Table:
    """Table 3 again, a row for each cell and policy."""
    table = Table(title="The longest context that compiles, thousands (1024) of tokens", title_justify="left")
    columns = (
        "slice",
        "model",
        "remat",
        "paper",
        "ours",
        "ratio",
        "HBM, GiB",
        "host, GiB",
        "ring waited for",
        "compiled in",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("slice", "model", "remat") else "right")
    for cell in cells:
        sizes = [f"{cell[name] / 1024:,.0f}" for name in ("paper_tokens", "tokens")] + [f"{cell['ratio']:.0f}x"]
        if cell["tokens"]:
            available = cell["host_bytes_available"]
            host = f"{cell['host_bytes'] / 2**30:.1f}" + (f" of {available / 2**30:.0f}" if available else "")
            waited = "" if cell["ring_waited"] is None else f"{cell['ring_waited']:.0%}"
            hbm = f"{cell['bytes_per_device'] / 2**30:.2f} of {cell['hbm_bytes'] / 2**30:.2f}"
            sizes += [hbm, host if cell["host_bytes"] else "", waited, f"{cell['compile_seconds']:.0f} s"]
        table.add_row(cell["slice"], cell["model"], cell["remat"], *sizes)
    return table


def rl_table(rows: list[dict]) -> Table:
    """Trajectories a context by slice."""
    table = Table(title="The 350M agent: trajectories of 1000 steps in one context (paper: 128)", title_justify="left")
    for column in ("slice", "trajectories", "tokens", "HBM, GiB", "host, GiB"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for row in rows:
        hbm, host = ((row[name] or 0) / 2**30 for name in ("bytes_per_device", "host_bytes"))
        table.add_row(row["slice"], f"{row['trajectories']:,}", f"{row['tokens']:,}", f"{hbm:.2f}", f"{host:.1f}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Args))
