"""FLOPs that a training step executes, counted on its jaxpr: every matrix product as often as it runs, on every device.

Recomputation is part of a jaxpr, so it is counted; a product that the compiler computes twice to save memory is not,
nor is one whose result nothing uses.
Attention's kernels compute the pairs of blocks in which something is visible, and only those are counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from ringrl.attention.kernels.gpu_tiles import choose_tiles
from ringrl.attention.layout import Layout, runs_per_shard

_KERNELS = {"attention_forward": 2, "attention_backward": 5, "attention_backward_dq": 3, "attention_backward_dkv": 4}
"""Matrix products of a pair of blocks, by the names of the kernels: TPUs have one backward kernel, GPUs two."""


@dataclass(frozen=True)
class Ring:
    """A ring's sizes, from which follows which pairs of blocks its devices compute."""

    tokens: int  # of a row
    size: int
    layout: Layout
    stripe: int  # tokens in each stripe of the striped layout
    halves: bool  # the backward pass takes a device's own keys twice, half of them each time (`ringrl.attention.ring`)

    def share(self, block_q: int, block_k: int, *, backward: bool) -> float:
        """Pairs of blocks with a visible pair of tokens over all pairs of all calls of a kernel; one segment a row."""
        runs = runs_per_shard(self.size, self.layout)
        run = self.tokens // (self.size * runs)
        high = self._positions(run, np.minimum(np.arange(block_q, run + block_q, block_q), run) - 1)
        low = np.sort(self._positions(run, np.arange(0, run, block_k)))
        visible = np.searchsorted(low, high, side="right").sum()
        calls = (self.size + 1) / self.size if backward and self.halves else 1.0
        return float(visible) / (len(high) * len(low) * calls)

    def _positions(self, run: int, index: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " all"]:
        """The positions of the tokens of these indices in each of the runs of all devices, in no order."""
        if self.layout == "striped":
            number, inside = index // self.stripe, index % self.stripe
            device = np.arange(self.size)[:, None]
            return ((number * self.size + device) * self.stripe + inside).reshape(-1)
        return np.add.outer(np.arange(0, self.tokens, run), index).reshape(-1)


def executed_flops(jaxpr: Any, ring: Ring) -> float | None:
    """FLOPs of all devices together, for one segment a row.

    Args:
        jaxpr: of the step, such as `jitted.trace(...).jaxpr.jaxpr`.
        ring: over which attention runs.

    Returns:
        None where a matrix product is in a loop whose number of turns is not in the program, as in the attention of
        platforms without a kernel.
    """
    total = 0.0
    for equation in _used(jaxpr):
        flops = _equation(equation, ring)
        if flops is None:
            return None
        total += flops
    return total


def _used(jaxpr: Any) -> list[Any]:
    """Equations of which something is used: the compiler leaves out the others, which rematerialisation can leave."""
    wanted, used = {id(v) for v in jaxpr.outvars}, []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(v) in wanted for v in equation.outvars):
            used.append(equation)
            wanted |= {id(v) for v in equation.invars}
    return used


def _equation(equation: Any, ring: Ring) -> float | None:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
    if name == "pallas_call":
        return _kernel(equation, ring)
    inside = [executed_flops(jaxpr, ring) for value in params.values() for jaxpr in _jaxprs(value)]
    counted = [flops for flops in inside if flops is not None]
    if len(counted) < len(inside) or (name == "while" and sum(counted)):
        return None
    if name == "cond":
        return max(counted, default=0.0)
    times = {"scan": params.get("length"), "shard_map": getattr(params.get("mesh"), "size", None)}.get(name)
    return float(1 if times is None else times) * sum(counted)


def _kernel(equation: Any, ring: Ring) -> float | None:
    """A kernel's products of all pairs of tokens, times the share of pairs of blocks that it computes on average."""
    name = equation.params["name"]
    if name not in _KERNELS:
        return None
    sizes = _gpu_sizes if "triton" in type(equation.params["compiler_params"]).__module__ else _tpu_sizes
    (batch, heads, queries, keys, head_dim), block_q, block_k = sizes(equation)
    share = ring.share(block_q, block_k, backward=name != "attention_forward")
    return _KERNELS[name] * 2.0 * batch * heads * queries * keys * head_dim * share


def _tpu_sizes(equation: Any) -> tuple[tuple[int, int, int, int, int], int, int]:
    """(batch, heads, queries, keys, head_dim) and the blocks of a kernel on [batch, heads, tokens, head_dim].

    The first input that passes in blocks is the queries, the last the keys' ids; the backward kernel's dq comes after.
    """
    grid, sums = equation.params["grid_mapping"], len(equation.params["input_output_aliases"])
    arrays = [v.aval.shape for v in equation.invars[: len(equation.invars) - sums] if len(v.aval.shape) == 4]
    batch, heads, queries, head_dim = arrays[0]
    first, last = grid.block_mappings[0].block_shape, grid.block_mappings[grid.num_inputs - sums - 1].block_shape
    return (batch, heads, queries, arrays[-1][2], head_dim), first[2].block_size, last[-1].block_size


def _gpu_sizes(equation: Any) -> tuple[tuple[int, int, int, int, int], int, int]:
    """The same of a kernel on [batch, tokens, heads, head_dim], whose first array says which tiles it visits."""
    q, *_, k = [v.aval for v in equation.invars[1:] if len(v.aval.shape) == 4]
    batch, queries, heads, head_dim = q.shape
    tiles = choose_tiles(head_dim, q.dtype.itemsize)
    tile = getattr(tiles, equation.params["name"].rpartition("_")[2])
    return (batch, heads, queries, k.shape[1], head_dim), tile.queries, tile.keys


def _jaxprs(value: Any) -> Iterator[Any]:
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(getattr(value, "jaxpr", None), "eqns"):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _jaxprs(each)
