"""A whole training step on CPU cores, ringrl and PyTorch in turn: forward, backward, clip of the norm, AdamW.

    pip install -e ".[bench]"
    python -m benchmarks.train_step                               # 1k, 4k and 16k tokens of context, float32, 2 cores
    python -m benchmarks.train_step --lengths 1024 --rounds 15    # more rounds, one length
    python -m benchmarks.train_step --subjects ringrl torch_kept torch_compile ringrl_bfloat16     # others, too

The model is of the field's size: 4 layers, width 256, 4 heads, feed-forward of 4 widths (Decision Transformer: 3 x 128
in Gym, 6 x 128 in Atari), 4 tokens a step (return-to-go, observation, action, reward), walker's 24 observations and 6
actions, tanh and mean squared error at the observation. `ringrl` is the training step of `ringrl train` with the
Agentic Transformer's tokens and synthetic steps; `remat: block`, its one setting about speed, keeps a layer's input and
its attention's output and recomputes the rest. `torch` is a decision transformer of stock modules: an nn.Linear a
modality, nn.Embedding of step and trial, nn.TransformerEncoder (norm first, causal, no dropout), AdamW; it keeps
everything. Its flash kernel is forced (PyTorch raises if another would run); fused AdamW and GELU by erf are its
fastest. Parameters agree within 1 %: PyTorch's layers have biases and its norms are LayerNorms, ringrl has neither but
rotates queries and keys. PyTorch's products come from MKL, which on AMD's processors reaches less than half of what
XLA's do; on other processors expect other ratios.

`ringrl train` has malloc keep what is freed (`ringrl.memory_pool`); `torch_kept` is PyTorch with the same
setting, which all others have too, and `ringrl_given_back` is without it. A ratio is to PyTorch's fastest subject of
the run. MiB do not compare between subjects with and without the setting: what compiling took is kept as well.

Every subject is a process of its own, which compiles, warms up and waits for its turn; every round has its own
order. A turn is an untimed step, which wakes the process, and a timed one. All processes are bound to the same cores. A
figure is the median over the rounds; where the fastest step is far below it, other work was running, from which
PyTorch's spinning threads suffer most: measure again. A ratio is tokens/s of ringrl over tokens/s of PyTorch. Memory is
the most that was resident during the turns, less what was before there was a model.

The last line is one JSON object: `vs_torch_1k`, `vs_torch_4k`, `vs_torch_16k` (above 1: ringrl is faster), the
processor's name, `peak_gflops` (the fastest product of two matrices of 2048 x 2048 that a subject computed in the run),
and for each subject tokens/s, seconds a step (median, fastest), MiB and `share_of_peak` by length, which counts 6 FLOPs
a token and parameter that is in no table, and those of causal attention; of bfloat16 it is a share of float32's peak.
"""

import importlib.util
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks._train_step_subjects import (
    LAYERS,
    TABLES,
    TOKENS_PER_STEP,
    WIDTH,
    resident,
    ringrl_step,
    rows,
    synthetic_steps,
    torch_step,
)
from benchmarks._workers import Worker, check_subjects, medians, orders, processor, product_flops, seconds_of, serve
from ringrl.memory_pool import keep_freed_memory

SUBJECTS = {
    "ringrl": "ringrl",
    "torch": "PyTorch",
    "torch_kept": "PyTorch, memory kept",
    "ringrl_given_back": "ringrl, memory given back",
    "ringrl_bfloat16": "ringrl, bfloat16 products",
    "torch_compile": "PyTorch, torch.compile",
}


@dataclass(frozen=True)
class Args:
    """Compare a training step with PyTorch's."""

    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """Tokens of context, a multiple of 4."""
    rounds: int = 9
    """Turns of every subject at each length."""
    cores: int = 2
    """Processor cores that all subjects share."""
    subjects: tuple[str, ...] = ("ringrl", "torch", "torch_kept")
    """Which to run."""
    worker: str | None = None
    """Used by the benchmark itself: the subject that this process is."""


def main(args: Args) -> None:
    """Print a table for each length, how cost grows, and the ratios as JSON."""
    if args.worker:
        return work(args.worker, args.lengths[0], args.cores)
    check_subjects(args.subjects, SUBJECTS)
    if odd := [length for length in args.lengths if length % TOKENS_PER_STEP or length < TOKENS_PER_STEP]:
        raise SystemExit(f"--lengths {odd[0]}: not a multiple of the {TOKENS_PER_STEP} tokens of a step")
    if any(name.startswith("torch") for name in args.subjects) and importlib.util.find_spec("torch") is None:
        raise SystemExit("PyTorch, the peer, is not installed: pip install -e '.[bench]', or --subjects ringrl")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    figures = {length: measure(args.subjects, length, args.rounds, args.cores) for length in args.lengths}
    print_growth(figures)
    print(json.dumps(summary(figures)))


@dataclass(frozen=True)
class Figures:
    """What one subject did at one length."""

    parameters: int
    seconds: float  # a step, median
    fastest: float  # seconds
    mebibytes: float  # at most resident, beyond the libraries
    peak: float  # FLOP/s of its own product of large matrices

    def tokens_per_second(self, length: int) -> float:
        """Of the whole batch."""
        return rows(length) * length / self.seconds

    def flops(self, length: int) -> float:
        """FLOP/s of the model: forward and backward, causal attention at half its square."""
        in_products = self.parameters - TABLES * WIDTH
        return self.tokens_per_second(length) * 6 * (in_products + LAYERS * WIDTH * length)


def fastest_torch(figures: dict[str, Figures]) -> Figures | None:
    """The peer at its best setting of the run."""
    peers = [each for name, each in figures.items() if name.startswith("torch")]
    return min(peers, key=lambda each: each.seconds, default=None)


def measure(subjects: tuple[str, ...], length: int, rounds: int, cores: int) -> dict[str, Figures]:
    """Figures of every subject at one length, the subjects taking turns; printed as they are known."""
    options = ["--lengths", str(length), "--cores", str(cores), "--worker"]
    parameters: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in subjects:  # one after the other: compiling together would only take turns on the cores
            worker = Worker(SUBJECTS[name], "benchmarks.train_step", [*options, name])
            workers[name] = stack.enter_context(worker)
            parameters[name] = int(worker.receive())
        for order in orders(subjects, rounds):
            for name in order:
                seconds[name].append(float(workers[name].ask("step")))
        memory = {name: float(worker.ask("memory")) for name, worker in workers.items()}
        peak = {name: float(worker.ask("peak")) for name, worker in workers.items()}
    found = {
        name: Figures(parameters[name], median, min(seconds[name]), memory[name], peak[name])
        for name, median in medians(seconds).items()
    }
    print_table(length, cores, found)
    return found


def print_table(length: int, cores: int, figures: dict[str, Figures]) -> None:
    """One length: what each subject did, and how it compares with PyTorch."""
    print(f"\n{rows(length)} x {length} tokens, {LAYERS} layers of {WIDTH}, {cores} cores; medians")
    print(f"{'':<28}{'parameters':>11}{'s a step':>10}{'fastest':>9}{'tokens/s':>10}{'vs PyTorch':>12}{'MiB':>8}")
    best = fastest_torch(figures)
    for name, x in figures.items():
        ratio = f"{best.seconds / x.seconds:.2f} x" if best else ""
        numbers = f"{x.parameters:>11,}{x.seconds:>10.3f}{x.fastest:>9.3f}{x.tokens_per_second(length):>10,.0f}"
        print(f"{SUBJECTS[name]:<28}{numbers}{ratio:>12}{x.mebibytes:>8,.0f}", flush=True)


def print_growth(figures: dict[int, dict[str, Figures]]) -> None:
    """Microseconds a token by context: flat while matrices dominate, then growing with the square of attention."""
    print("\nmicroseconds a token, by tokens of context")
    print(f"{'':<28}" + "".join(f"{length:>10,}" for length in figures))
    for name in next(iter(figures.values())):
        costs = (1e6 / found[name].tokens_per_second(length) for length, found in figures.items())
        print(f"{SUBJECTS[name]:<28}" + "".join(f"{cost:>10.1f}" for cost in costs))


def summary(figures: dict[int, dict[str, Figures]]) -> dict[str, Any]:
    """The JSON line."""
    label = {length: f"{length // 1024}k" if length % 1024 == 0 else str(length) for length in figures}
    peak = max(each.peak for found in figures.values() for each in found.values())
    ratios: dict[str, Any] = {
        f"vs_torch_{label[length]}": round(best.seconds / found["ringrl"].seconds, 3)
        for length, found in figures.items()
        if (best := fastest_torch(found)) and "ringrl" in found
    }
    ratios |= {"processor": processor(), "peak_gflops": round(peak / 1e9)}
    subjects = {
        name: {
            label[length]: {
                "tokens_per_s": round(found[name].tokens_per_second(length)),
                "seconds": round(found[name].seconds, 4),
                "fastest": round(found[name].fastest, 4),
                "mebibytes": round(found[name].mebibytes),
                "share_of_peak": round(found[name].flops(length) / peak, 3),
            }
            for length, found in figures.items()
        }
        for name in next(iter(figures.values()))
    }
    return ratios | subjects


def work(name: str, length: int, cores: int) -> None:
    """Be one subject: compile, warm up, then take two steps for every line that comes in, and time the second."""
    prepare = partial(torch_step, compiled=name == "torch_compile", cores=cores)
    if name.startswith("ringrl"):
        prepare = partial(ringrl_step, dtype="bfloat16" if name == "ringrl_bfloat16" else "float32")
    if name not in ("torch", "ringrl_given_back") and not keep_freed_memory():
        raise SystemExit("malloc was set by LD_PRELOAD, GLIBC_TUNABLES or MALLOC_...: unset them for this benchmark")
    step, parameters, before = prepare(synthetic_steps(length), length)
    step()
    step()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what is resident starts anew

    def answer(line: str) -> float:
        if line == "memory":
            return (resident("VmHWM") - before) / 2**20
        if line == "peak":
            return product_flops(torch=name.startswith("torch"))
        step()  # wakes what the system has put aside while the others had their turns
        return seconds_of(step)

    serve(parameters, answer)


if __name__ == "__main__":
    main(tyro.cli(Args))
