"""ringrl's attention and its peers' in turn: seconds of one forward, and of one forward and backward, on CPU cores.

    pip install -e ".[bench]"
    python -m benchmarks.attention                             # float32, causal, batch 1, 4 heads of 64; 8192 and 32768
    python -m benchmarks.attention --lengths 8192 --rounds 15  # more rounds, one length

Peers: PyPI's `ringattention` 0.1.2 (the authors' package) on 8 simulated devices; on one device PyTorch's flash
`scaled_dot_product_attention` and `jax.nn.dot_product_attention`. Every subject is a process of its own, which
compiles, warms up and waits for its turn. Every round has its own order, so that a slow moment of the machine, or what
a neighbour leaves behind, meets all alike. A turn is an untimed forward, which wakes the process, a timed one, and a
timed forward and backward.
All processes are bound to the same cores. A figure is the median over the rounds; `times faster` is the peer's median
divided by ours. Inputs are ready in each one's own layout: [batch, length, heads, head_dim], PyTorch's [batch, heads,
length, head_dim], and ring order for the ring, as a training step finds them. ringattention runs with the chunks, of
256, 512 or a shard up to 1024, whose forward and backward pass is fastest here.

The last line is one JSON object: how many times faster ringrl is than the peer, at the first length; the processor;
`peak_gflops`, the fastest product of two matrices of 2048 x 2048 that a subject computed in the run; `chunk`; and
`share_of_peak` of every subject, by length, forward and with backward, of the products that causality needs.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from benchmarks._workers import (
    Worker,
    check_subjects,
    medians,
    orders,
    processor,
    product_flops,
    seconds_of,
    serve,
)

HEADS, HEAD_DIM, RING = 4, 64, 8
PASSES = ("forward", "train")
SUBJECTS = {
    "ring8_ringrl": "ringrl ring of 8 (zigzag)",
    "ring8_ringrl_xla": "ringrl ring of 8, plain XLA",
    "ring8_ringattention": "ringattention 0.1.2, ring of 8",
    "one_ringrl": "ringrl, one device",
    "one_ringrl_xla": "ringrl, one device, plain XLA",
    "one_torch": "PyTorch flash, one device",
    "one_jax_nn": "jax.nn, one device",
}
LONGEST = {"one_jax_nn": 8192, "one_ringrl_xla": 8192, "ring8_ringrl_xla": 8192}
"""Longest length of some: jax.nn keeps all scores in memory, 17 GB of them at 32768; plain XLA is no peer, and slow."""
CHUNKS = (256, 512, 1024)
"""Of ringattention's, those that fit into a shard."""
PRODUCTS = {"forward": 2, "train": 7}
"""Products of queries and keys' size, of which causality needs half: 2 forward, 5 more backward."""


@dataclass(frozen=True)
class Args:
    """Compare attention with its peers."""

    lengths: tuple[int, ...] = (8192, 32768)
    """Tokens; the JSON line is about the first."""
    rounds: int = 9
    """Turns of every subject at the first length; a third of them at others."""
    seconds: float = 240.0
    """Of turns at one length at most, but for the round that is under way."""
    cores: int = 2
    """Processor cores that all subjects share."""
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    """Which to run."""
    worker: str | None = None
    """Used by the benchmark itself: the subject that this process is."""


def main(args: Args) -> None:
    """Print a table for each length, then the ratios as JSON."""
    if args.worker:
        return work(args.worker, args.lengths[0], args.cores)
    check_subjects(args.subjects, SUBJECTS)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    ratios: dict[str, Any] = {}
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for index, length in enumerate(args.lengths):
        subjects = [name for name in args.subjects if length <= LONGEST.get(name, length)]
        found = measure(subjects, length, args.rounds if index == 0 else max(args.rounds // 3, 1), args)
        print_table(length, args.cores, found)
        ratios = ratios or compare(found.seconds) | {"peak_gflops": round(found.peak / 1e9), "chunk": found.chunk}
        for name in subjects:
            shares.setdefault(name, {})[str(length)] = {which: round(found.share(name, which), 3) for which in PASSES}
    print(json.dumps(ratios | {"processor": processor(), "cores": args.cores, "share_of_peak": shares}))


@dataclass(frozen=True)
class Found:
    """What was measured at one length.

    Attributes:
        length: tokens.
        seconds: median, of (subject, pass).
        peak: FLOP/s of the fastest product of two large matrices, of all subjects.
        chunk: ringattention's; None: it did not run.
    """

    length: int
    seconds: dict[tuple[str, str], float]
    peak: float
    chunk: int | None

    def flops(self, name: str, which: str) -> float:
        """FLOP/s of the products that causality needs."""
        return PRODUCTS[which] * HEADS * HEAD_DIM * self.length**2 / self.seconds[name, which]

    def share(self, name: str, which: str) -> float:
        """`flops` over the peak."""
        return self.flops(name, which) / self.peak


def measure(subjects: list[str], length: int, rounds: int, args: Args) -> Found:
    """Each subject's median seconds and the peak, the subjects taking turns."""
    options = ["--lengths", str(length), "--cores", str(args.cores), "--worker"]
    hint = ". Is the extra there? pip install -e '.[bench]'"
    seconds: dict[tuple[str, str], list[float]] = {(name, which): [] for name in subjects for which in PASSES}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        chunk = None
        for name in subjects:  # one after the other: compiling together would only take turns on the cores
            worker = Worker(SUBJECTS[name], "benchmarks.attention", [*options, name], hint=hint)
            workers[name] = stack.enter_context(worker)
            chunk = json.loads(worker.receive()) or chunk
        peak = max(float(worker.ask("peak")) for worker in workers.values())
        began = time.perf_counter()
        for order in orders(subjects, rounds):
            if time.perf_counter() - began > args.seconds and all(seconds.values()):
                break
            for name in order:
                for which in PASSES:
                    seconds[name, which].append(float(workers[name].ask(which)))
        peak = max(peak, *(float(worker.ask("peak")) for worker in workers.values()))
    return Found(length, medians(seconds), peak, chunk)


def print_table(length: int, cores: int, found: Found) -> None:
    """Seconds, and the rate of the products that causality needs, also as a share of the measured peak."""
    about = f"float32, causal, {HEADS} heads of {HEAD_DIM}, {cores} cores of {processor()}"
    print(f"\nlength {length}, {about}; medians; peak {found.peak / 1e9:.0f} GFLOP/s")
    print(f"{'':<46}{'forward s':>10}{'GFLOP/s':>9}{'of peak':>9}{'+ backward s':>14}{'GFLOP/s':>9}{'of peak':>9}")
    for name in dict.fromkeys(name for name, _ in found.seconds):
        title = SUBJECTS[name] + (f", chunks of {found.chunk}" if name == "ring8_ringattention" else "")
        parts = [f"{title:<46}"]
        for which, width in zip(PASSES, (10, 14), strict=True):
            rate = f"{found.flops(name, which) / 1e9:>9.0f}{found.share(name, which):>9.0%}"
            parts.append(f"{found.seconds[name, which]:>{width}.3f}{rate}")
        print("".join(parts), flush=True)


def compare(seconds: dict[tuple[str, str], float]) -> dict[str, float]:
    """Times faster than the peer, for the pairs that ran."""
    pairs = {"ring8_{}_vs_ringattention": ("ring8_ringattention", "ring8_ringrl")}
    pairs |= {"one_{}_vs_torch": ("one_torch", "one_ringrl"), "one_{}_vs_jax_nn": ("one_jax_nn", "one_ringrl")}
    return {
        key.format(which): round(seconds[peer, which] / seconds[ours, which], 3)
        for key, (peer, ours) in pairs.items()
        for which in PASSES
        if (peer, which) in seconds and (ours, which) in seconds
    }


def work(name: str, length: int, cores: int) -> None:
    """Be one subject: compile, warm up, then time one call for every line that comes in."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, length, HEADS, HEAD_DIM), np.float32) for _ in range(4)]
    chunk = None
    if name == "one_torch":
        passes = torch_passes(arrays, cores)
    elif name == "ring8_ringattention":
        made = {chunk: jax_passes(name, arrays, chunk) for chunk in CHUNKS if chunk <= length // RING}
        chunk = min(made, key=lambda chunk: fastest(made[chunk]["train"]))
        passes = made[chunk]
    else:
        passes = jax_passes(name, arrays)
    for call in passes.values():
        call()
        call()

    def answer(which: str) -> float:
        if which == "peak":
            return product_flops(torch=name == "one_torch")
        if which == "forward":
            passes[which]()  # wakes what the system has put aside while the others had their turns
        return seconds_of(passes[which])

    serve(json.dumps(chunk), answer)


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of the faster of two calls, after one that compiles."""
    call()
    return min(seconds_of(call) for _ in range(2))


def torch_passes(arrays: list[np.ndarray], cores: int) -> dict[str, Callable[[], Any]]:
    """PyTorch's flash kernel, forced: it raises if another would be taken."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores)
    q, k, v, weights = (torch.from_numpy(x).transpose(1, 2).contiguous() for x in arrays)

    def forward() -> Any:
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def train() -> Any:
        leaves: Any = [x.detach().requires_grad_() for x in (q, k, v)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=True)
        return torch.autograd.grad(out, leaves, weights)

    return {"forward": forward, "train": train}


def jax_passes(name: str, arrays: list[np.ndarray], chunk: int = 0) -> dict[str, Callable[[], Any]]:
    """One of the subjects in JAX, jitted, on RING devices or on one."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    ring = name.startswith("ring8")
    jax.config.update("jax_num_cpu_devices", RING if ring else 1)
    mesh = jax.make_mesh((RING,) if ring else (1,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P(None, "seq")
    attend = jax_attention(name, chunk)
    if ring:
        attend = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    placed = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in arrays]

    def train(q: Any, k: Any, v: Any, weights: Any) -> Any:
        out, backward = jax.vjp(attend, q, k, v)
        return out, backward(weights)

    compiled = {"forward": (jax.jit(attend), placed[:3]), "train": (jax.jit(train), placed)}
    return {
        which: lambda f=f, arguments=arguments: jax.block_until_ready(f(*arguments))
        for which, (f, arguments) in compiled.items()
    }


def jax_attention(name: str, chunk: int) -> Callable:
    """(q, k, v) -> output, for the whole sequence or for one shard of it; `chunk` is ringattention's."""
    from functools import partial

    import jax

    from ringrl.attention import blockwise_attention, ring_attention

    if name == "ring8_ringattention":
        return authors_attention(chunk)
    return {
        "ring8_ringrl": partial(ring_attention, axis_name="seq"),
        "ring8_ringrl_xla": partial(ring_attention, axis_name="seq", kernel="xla"),
        "one_ringrl": blockwise_attention,
        "one_ringrl_xla": partial(blockwise_attention, kernel="xla"),
        "one_jax_nn": partial(jax.nn.dot_product_attention, is_causal=True),
    }[name]


def authors_attention(chunk: int) -> Callable:
    """The authors' package, as it wants to be called; it imports a module that JAX has since moved."""
    import types

    import jax
    import jax.lib
    import jax.numpy as jnp
    from jax.extend import backend

    jax.lib.xla_bridge = types.SimpleNamespace(get_backend=backend.get_backend)  # pyright: ignore[reportAttributeAccessIssue]
    from ringattention import ringattention  # pyright: ignore[reportMissingImports]

    options = {
        "causal_block_size": 1,
        "deterministic": True,
        "dropout_rng": None,
        "attn_pdrop": 0.0,
        "query_chunk_size": chunk,
        "key_chunk_size": chunk,
        "policy": jax.checkpoint_policies.nothing_saveable,
        "dtype": jnp.float32,
        "precision": None,
        "prevent_cse": True,
    }
    return lambda q, k, v: ringattention(q, k, v, None, None, None, "seq", True, options)


if __name__ == "__main__":
    main(tyro.cli(Args))
