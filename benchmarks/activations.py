"""Table 1 of the Ring Attention paper, measured: peak temporaries of one layer, forward and backward, by the compiler.

    python -m benchmarks.activations                         # XLA's CPU backend, and the TPU compiler where libtpu is
    python -m benchmarks.activations --topology v6e:2x4      # another slice of 8 devices or more
    python -m benchmarks.activations --topology none         # the CPU backend alone

A layer of ringrl's transformer in bfloat16 (float32 parameters), batch 1, rematerialised, differentiated with respect
to its parameters and its input. Nothing runs: the figures are `temp_size_in_bytes` of the compiled program on one
device, which leaves out what goes in and out (input, parameters, their gradients), and seemingly also what a TPU's
compiler keeps in vector memory (for v5e up to 112 MiB, enough for the shortest lengths here). Beside them is the
paper's closed form (arXiv 2310.01889, Table 1), which counts the largest activation of the forward pass; the backward
pass also needs gradients and float32 sums, and XLA's CPU backend float32 copies of what is bfloat16. The schemes:

    vanilla           jax.nn.dot_product_attention (all scores in memory), feed-forward over all tokens
    memory_efficient  blockwise attention, feed-forward over all tokens
    blockwise         blockwise attention and feed-forward (BPT)
    ring              ring attention on 8 devices, the sequence spread over them, and blockwise feed-forward

The second table keeps the tokens of a device constant and lets the ring grow: what a device needs must not grow.
The last line is one JSON object: compiler -> scheme -> length -> bytes a device (null: more than the device has).
"""

import importlib.util
import json
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

from ringrl.config import MeshConfig, ModelConfig
from ringrl.model.layer import Layer, LayerInput
from ringrl.model.sharding import run_local
from ringrl.model.transformer import make_attend
from ringrl.planner.closed_form import Scheme, layer_activation_bytes
from ringrl.planner.topology import find_devices
from ringrl.training.mesh import make_mesh


@dataclass(frozen=True)
class Args:
    """Measure one layer's activations."""

    lengths: tuple[int, ...] = (16384, 32768, 65536)
    """Tokens of the whole sequence; vanilla, whose scores are quadratic, gets an eighth of them."""
    width: int = 1024
    """Model width."""
    heads: int = 8
    """Attention heads, and key heads. Heads narrower than 128 are padded to it in a TPU's memory."""
    feed_forward_block: int = 1024
    """Tokens a device that the blockwise MLP computes at once."""
    topology: str = "v5e:2x4"
    """Slice for the TPU compiler; `none`: the CPU backend alone."""


@dataclass(frozen=True)
class Case:
    """One layer under one scheme."""

    scheme: Scheme
    length: int
    width: int
    heads: int
    feed_forward_block: int
    ring: int = 1

    @property
    def closed_form(self) -> int:
        """Bytes on one device that the paper gives."""
        sizes = {"batch": 1, "width": self.width, "heads": self.heads, "length": self.length}
        return layer_activation_bytes(self.scheme, **sizes, block=self.length // self.ring)


def temporaries(case: Case, devices: list[Any]) -> int | None:
    """Peak temporaries of the layer's forward and backward pass, bytes on one device; None where they do not fit."""
    mesh = make_mesh(MeshConfig(seq=case.ring), devices)
    block = case.feed_forward_block if case.scheme in ("blockwise", "ring") else case.length
    config = ModelConfig(
        layers=1,
        width=case.width,
        heads=case.heads,
        kv_heads=case.heads,
        feed_forward_block=block,
        compute_dtype="bfloat16",
    )
    graph, parameters = nnx.split(nnx.eval_shape(lambda: Layer(config, rngs=nnx.Rngs(0))))
    attend = _dense if case.scheme == "vanilla" else make_attend(mesh, "zigzag", None)

    def run(parameters: Any, x: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        compute = lambda p, tokens: nnx.merge(graph, p)(tokens, attend, lambda part: part)  # noqa: E731
        return run_local(mesh, P(), compute)(parameters, LayerInput(x, positions, segments))

    def loss(parameters: Any, x: jax.Array, weights: jax.Array, *ids: jax.Array) -> jax.Array:
        y = jax.checkpoint(run)(parameters, x, *ids)
        return (y.astype(jnp.float32) * weights.astype(jnp.float32)).sum()

    def place(spec: P, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    spread = partial(place, P(None, "seq"))
    x = spread(jax.ShapeDtypeStruct((1, case.length, case.width), jnp.bfloat16))
    ids = spread(jax.ShapeDtypeStruct((1, case.length), jnp.int32))
    parameters = jax.tree.map(partial(place, P()), parameters)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(parameters, x, x, ids, ids)
        return _temporaries(lowered)


def _temporaries(lowered: jax.stages.Lowered) -> int | None:
    try:
        memory: Any = lowered.compile().memory_analysis()
        return int(memory.temp_size_in_bytes)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Attention with all scores in memory, as JAX has it; one segment."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")


def by_length(args: Args) -> list[Case]:
    """Table 1's schemes at every length."""
    shape = {"width": args.width, "heads": args.heads, "feed_forward_block": args.feed_forward_block}
    return [
        Case(scheme, length // 8 if scheme == "vanilla" else length, **shape, ring=8 if scheme == "ring" else 1)
        for scheme in get_args(Scheme)
        for length in args.lengths
    ]


def by_ring(args: Args) -> list[Case]:
    """The longest case of the ring, and rings of 2 and 4 with as many tokens a device."""
    longest = by_length(args)[-1]
    return [replace(longest, ring=ring, length=longest.length * ring // 8) for ring in (2, 4, 8)]


def measure(title: str, cases: list[Case], devices: list[Any], console: Console) -> list[int | None]:
    """Compile every case and print the table: MiB on one device, and bytes for each token of the device and width."""
    table = Table(title=title, title_justify="left")
    for column in (
        "scheme",
        "ring",
        "tokens",
        "a device",
        "closed form, MiB",
        "measured, MiB",
        "ratio",
        "bytes / (token width)",
    ):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    results = []
    for case in cases:
        results.append(found := temporaries(case, devices))
        tokens, paper = case.length // case.ring, case.closed_form
        cells = [f"{x:,}" for x in (case.ring, case.length, tokens)] + [f"{paper / 2**20:,.1f}"]
        if found is None:
            cells += ["does not fit", "", ""]
        else:
            cells += [f"{found / 2**20:,.1f}", f"{found / paper:.1f}", f"{found / (tokens * case.width):.1f}"]
        table.add_row(case.scheme, *cells)
    console.print(table)
    return results


def main(args: Args) -> None:
    """Print both tables for each compiler."""
    jax.config.update("jax_num_cpu_devices", 8)
    compilers = {"cpu": jax.devices("cpu")}
    if args.topology != "none" and importlib.util.find_spec("libtpu") is not None:
        compilers[args.topology] = find_devices(args.topology)
    console, answer = Console(width=120), {}
    for name, devices in compilers.items():
        cases = by_length(args)
        results = measure(f"One layer, width {args.width}, {args.heads} heads: {name}", cases, devices, console)
        answer[name] = {scheme: {} for scheme in get_args(Scheme)}
        for case, found in zip(cases, results, strict=True):
            answer[name][case.scheme][str(case.length)] = found
        measure(f"The same tokens a device on longer rings: {name}", by_ring(args), devices, console)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(tyro.cli(Args))
