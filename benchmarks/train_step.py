"""A whole training step on CPU cores, ringrl and PyTorch in turn: forward, backward, clip of the norm, AdamW.

    pip install -e ".[bench]"
    python -m benchmarks.train_step                               # 1k, 4k and 16k tokens of context, float32, 2 cores
    python -m benchmarks.train_step --lengths 1024 --rounds 15    # more rounds, one length
    python -m benchmarks.train_step --subjects ringrl torch ringrl_bfloat16 torch_compile     # the others, too

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

Every subject lives in a process of its own, which compiles, warms up and waits for its turn; every round has its own
order. A turn is an untimed step, which wakes the process, and a timed one. All processes are bound to the same cores. A
figure is the median over the rounds; where the fastest step is far below it, other work was running, from which
PyTorch's spinning threads suffer most: measure again. A ratio is tokens/s of ringrl over tokens/s of PyTorch. Memory is
the most that was resident during the turns, less what was before there was a model.

The last line is one JSON object: `vs_torch_1k`, `vs_torch_4k`, `vs_torch_16k` (above 1: ringrl is faster), and for each
subject tokens/s, seconds a step (median, fastest) and MiB by length.
"""

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ringrl.batch import BATCH_SCHEMA, link_previous

LAYERS, WIDTH, HEADS, FEED_FORWARD = 4, 256, 4, 4  # the last in widths, ringrl's default
OBSERVATION, ACTION, TOKENS_PER_STEP = 24, 6, 4
MAX_STEPS, MAX_TRIALS = 1000, 128
LEARNING_RATE, WEIGHT_DECAY, BETA2, CLIP_NORM = 1e-4, 1e-4, 0.99, 1.0
BATCH = {1024: 4}  # rows by tokens of context; one row of any other
SUBJECTS = {
    "ringrl": "ringrl",
    "torch": "PyTorch",
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
    subjects: tuple[str, ...] = ("ringrl", "torch")
    """Which to run."""
    worker: str | None = None
    """Used by the benchmark itself: the subject that this process is."""


def main(args: Args) -> None:
    """Print a table for each length, how cost grows, and the ratios as JSON."""
    if args.worker:
        return work(args.worker, args.lengths[0], args.cores)
    if unknown := set(args.subjects) - set(SUBJECTS):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no such subject; there are {', '.join(SUBJECTS)}")
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

    def tokens_per_second(self, length: int) -> float:
        """Of the whole batch."""
        return rows(length) * length / self.seconds


def rows(length: int) -> int:
    """Rows of the batch at a context of this many tokens."""
    return BATCH.get(length, 1)


def measure(subjects: tuple[str, ...], length: int, rounds: int, cores: int) -> dict[str, Figures]:
    """Figures of every subject at one length, the subjects taking turns; printed as they are known."""
    options = ["--lengths", str(length), "--cores", str(cores), "--worker"]
    command = [sys.executable, "-m", "benchmarks.train_step", *options]
    workers: dict[str, subprocess.Popen] = {}
    parameters: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    memory: dict[str, float] = {}
    try:
        for name in subjects:  # one after the other: compiling together would only take turns on the cores
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            workers[name] = subprocess.Popen([*command, name], **pipes)
            parameters[name] = int(expect(workers[name], name))
        order = random.Random(0)
        for _ in range(rounds):
            for name in order.sample(subjects, len(subjects)):
                print("step", file=workers[name].stdin, flush=True)
                seconds[name].append(float(expect(workers[name], name)))
        for name in subjects:
            print("memory", file=workers[name].stdin, flush=True)
            memory[name] = float(expect(workers[name], name))
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.wait()
    found = {
        name: Figures(parameters[name], statistics.median(values), min(values), memory[name])
        for name, values in seconds.items()
    }
    print_table(length, cores, found)
    return found


def expect(worker: subprocess.Popen, name: str) -> str:
    """The worker's next line; SystemExit if it has died."""
    line = worker.stdout.readline() if worker.stdout else ""
    if not line:
        raise SystemExit(f"{SUBJECTS[name]} stopped: see its error above")
    return line


def print_table(length: int, cores: int, figures: dict[str, Figures]) -> None:
    """One length: what each subject did, and how it compares with PyTorch."""
    print(f"\n{rows(length)} x {length} tokens, {LAYERS} layers of {WIDTH}, {cores} cores; medians")
    print(f"{'':<28}{'parameters':>11}{'s a step':>10}{'fastest':>9}{'tokens/s':>10}{'vs PyTorch':>12}{'MiB':>8}")
    for name, x in figures.items():
        ratio = f"{figures['torch'].seconds / x.seconds:.2f} x" if "torch" in figures else ""
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
    ratios = {
        f"vs_torch_{label[length]}": round(found["torch"].seconds / found["ringrl"].seconds, 3)
        for length, found in figures.items()
        if {"torch", "ringrl"} <= set(found)
    }
    subjects = {
        name: {
            label[length]: {
                "tokens_per_s": round(found[name].tokens_per_second(length)),
                "seconds": round(found[name].seconds, 4),
                "fastest": round(found[name].fastest, 4),
                "mebibytes": round(found[name].mebibytes),
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
    step, parameters, before = prepare(synthetic_steps(length), length)
    step()
    step()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what is resident starts anew
    print(parameters, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print((resident("VmHWM") - before) / 2**20, flush=True)
            continue
        step()  # wakes what the system has put aside while the others had their turns
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


def resident(field: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`), or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def synthetic_steps(length: int) -> dict[str, np.ndarray]:
    """The arrays of `ringrl.batch.Batch`: one segment a row, trials of up to MAX_STEPS steps."""
    rng, shape = np.random.default_rng(0), (rows(length), length // TOKENS_PER_STEP)
    sizes = {"observation": OBSERVATION, "action": ACTION}
    steps = {name: field.zeros(shape, sizes) for name, field in BATCH_SCHEMA.items()}
    for name in ("observation", "action", "reward", "return_to_go"):
        steps[name] = rng.standard_normal(steps[name].shape, np.float32)
    steps["action"] = np.tanh(steps["action"])
    steps["position"] += np.arange(shape[1], dtype=np.int32)
    steps["step"], steps["trial"] = steps["position"] % MAX_STEPS, steps["position"] // MAX_STEPS
    steps["segment_ids"] += 1
    steps["weight"] += 1
    return link_previous(steps)


def ringrl_step(batch: dict[str, np.ndarray], length: int, dtype: str) -> tuple[Callable[[], Any], int, int]:
    """A step of `ringrl train`, the number of parameters, and bytes resident before the model was there."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from ringrl.agent import load_agent
    from ringrl.training.mesh import make_mesh, place_batch
    from ringrl.training.state import init_state, make_train_step

    config = ringrl_config(length, dtype)
    agent, mesh = load_agent(config.agent.name), make_mesh(config.mesh)
    before = resident("VmRSS")
    graph, state = init_state(config, agent, {"observation": OBSERVATION, "action": ACTION}, mesh)
    train_step = make_train_step(config, agent, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    placed = place_batch(batch, mesh)

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, placed)
        jax.block_until_ready((state, metrics))

    return step, sum(x.size for x in jax.tree.leaves(state.params)), before


def ringrl_config(length: int, dtype: str) -> Any:
    """A run's configuration as a user writes it."""
    from ringrl.config import parse_config

    model = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "kv_heads": HEADS, "remat": "block"}
    model |= {"max_steps": MAX_STEPS, "max_trials": MAX_TRIALS, "compute_dtype": dtype}
    rates = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "beta2": BETA2, "clip_norm": CLIP_NORM}
    return parse_config(
        {
            "data": {"store": "none", "task": "walker_run"},
            "agent": {"name": "agentic_transformer", "completion": False},
            "model": model,
            "optimizer": rates,
            "training": {"batch": rows(length), "row_steps": length // TOKENS_PER_STEP},
        },
        "benchmarks.train_step",
    )


def torch_step(
    batch: dict[str, np.ndarray], length: int, cores: int, compiled: bool
) -> tuple[Callable[[], Any], int, int]:
    """A step of the peer, the number of parameters, and bytes resident before the model was there."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores)
    torch.manual_seed(0)
    before = resident("VmRSS")
    sizes = {"return_to_go": 1, "observation": OBSERVATION, "action": ACTION, "reward": 1}
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    inputs = [tensors[name].reshape(*tensors["step"].shape, size) for name, size in sizes.items()]
    # Never read, for the flash kernel knows what is causal: but a layer wants one, and this takes no memory.
    mask = torch.zeros(1, 1).expand(length, length)

    class DecisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modalities = nn.ModuleList(nn.Linear(size, WIDTH) for size in sizes.values())
            self.step, self.trial = nn.Embedding(MAX_STEPS, WIDTH), nn.Embedding(MAX_TRIALS, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            options: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD * WIDTH, **options)
            last = nn.LayerNorm(WIDTH)
            self.layers = nn.TransformerEncoder(layer, LAYERS, norm=last, enable_nested_tensor=False)
            self.output = nn.Linear(WIDTH, ACTION)

        def forward(self) -> Any:
            when = self.step(tensors["step"]) + self.trial(tensors["trial"])
            tokens = [self.norm(embed(x) + when) for embed, x in zip(self.modalities, inputs, strict=True)]
            y = self.layers(torch.stack(tokens, dim=2).flatten(1, 2), mask=mask, is_causal=True)
            return torch.tanh(self.output(y[:, 1::TOKENS_PER_STEP]))

    model = DecisionTransformer()
    forward = torch.compile(model) if compiled else model
    settings: Any = {"lr": LEARNING_RATE, "betas": (0.9, BETA2), "weight_decay": WEIGHT_DECAY, "fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)

    def step() -> float:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            loss = nn.functional.mse_loss(forward(), tensors["action"])
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, sum(x.numel() for x in model.parameters()), before


if __name__ == "__main__":
    main(tyro.cli(Args))
