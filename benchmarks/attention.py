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
length, head_dim], and ring order for the ring, as a training step finds them.

The last line is one JSON object: how many times faster ringrl is than the peer, at the first length.
"""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from benchmarks._workers import Worker, check_subjects, medians, orders, seconds_of, serve

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
QUADRATIC = {"one_jax_nn": 8192}
"""Longest length for those that keep all scores in memory: 17 GB of them at 32768."""


@dataclass(frozen=True)
class Args:
    """Compare attention with its peers."""

    lengths: tuple[int, ...] = (8192, 32768)
    """Tokens; the JSON line is about the first."""
    rounds: int = 9
    """Turns of every subject at the first length; a third of them at others."""
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
    ratios = {}
    for index, length in enumerate(args.lengths):
        subjects = [name for name in args.subjects if length <= QUADRATIC.get(name, length)]
        found = measure(subjects, length, args.rounds if index == 0 else max(args.rounds // 3, 1), args.cores)
        print_table(length, args.cores, found)
        ratios = ratios or compare(found)
    print(json.dumps(ratios))


def measure(subjects: list[str], length: int, rounds: int, cores: int) -> dict[tuple[str, str], float]:
    """Median seconds of (subject, pass), the subjects taking turns."""
    options = ["--lengths", str(length), "--cores", str(cores), "--worker"]
    hint = ". Is the extra there? pip install -e '.[bench]'"
    seconds: dict[tuple[str, str], list[float]] = {(name, which): [] for name in subjects for which in PASSES}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in subjects:  # one after the other: compiling together would only take turns on the cores
            worker = Worker(SUBJECTS[name], "benchmarks.attention", [*options, name], hint=hint)
            workers[name] = stack.enter_context(worker)
            worker.receive()
        for order in orders(subjects, rounds):
            for name in order:
                for which in PASSES:
                    seconds[name, which].append(float(workers[name].ask(which)))
    return medians(seconds)


def print_table(length: int, cores: int, seconds: dict[tuple[str, str], float]) -> None:
    """Seconds, and the rate of the products that causality needs: 2 forward, 5 more backward, each half of S x S."""
    product = 2 * HEADS * HEAD_DIM * length**2 / 2 / 1e9
    print(f"\nlength {length}, float32, causal, {HEADS} heads of {HEAD_DIM}, {cores} cores; medians")
    print(f"{'':<34}{'forward s':>10}{'GFLOP/s':>9}{'+ backward s':>14}{'GFLOP/s':>9}")
    for name in dict.fromkeys(name for name, _ in seconds):
        forward, train = (seconds[name, which] for which in PASSES)
        rates = f"{forward:>10.3f}{2 * product / forward:>9.0f}{train:>14.3f}{7 * product / train:>9.0f}"
        print(f"{SUBJECTS[name]:<34}{rates}", flush=True)


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
    passes = torch_passes(arrays, cores) if name == "one_torch" else jax_passes(name, arrays)
    for call in passes.values():
        call()
        call()

    def answer(which: str) -> float:
        if which == "forward":
            passes[which]()  # wakes what the system has put aside while the others had their turns
        return seconds_of(passes[which])

    serve("ready", answer)


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


def jax_passes(name: str, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """One of the subjects in JAX, jitted, on RING devices or on one."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    ring = name.startswith("ring8")
    jax.config.update("jax_num_cpu_devices", RING if ring else 1)
    mesh = jax.make_mesh((RING,) if ring else (1,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P(None, "seq")
    attend = jax_attention(name, arrays[0].shape[1])
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


def jax_attention(name: str, length: int) -> Callable:
    """(q, k, v) -> output, for the whole sequence or for one shard of it."""
    from functools import partial

    import jax

    from ringrl.attention import blockwise_attention, ring_attention

    if name == "ring8_ringattention":
        return authors_attention(length // RING)
    return {
        "ring8_ringrl": partial(ring_attention, axis_name="seq"),
        "ring8_ringrl_xla": partial(ring_attention, axis_name="seq", kernel="xla"),
        "one_ringrl": blockwise_attention,
        "one_ringrl_xla": partial(blockwise_attention, kernel="xla"),
        "one_jax_nn": partial(jax.nn.dot_product_attention, is_causal=True),
    }[name]


def authors_attention(shard: int) -> Callable:
    """The authors' package, as it wants to be called; it imports a module that JAX has since moved."""
    import types

    import jax
    import jax.lib
    import jax.numpy as jnp
    from jax.extend import backend

    jax.lib.xla_bridge = types.SimpleNamespace(get_backend=backend.get_backend)  # pyright: ignore[reportAttributeAccessIssue]
    from ringattention import ringattention  # pyright: ignore[reportMissingImports]

    chunk = min(shard, 1024)
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
