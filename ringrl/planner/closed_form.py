"""The closed form of the Ring Attention paper (Liu et al., arXiv 2310.01889): Table 1 and Table 2.

It counts one layer's activations and one hop's transfers by formula, so it takes no time and is for any chip. What it
leaves out (parameters, optimiser state, the saved inputs of all layers, the compiler's own buffers) is most of what
fills a device; `ringrl.planner.compiled` has the compiler's own numbers.
"""

from dataclasses import dataclass
from typing import Literal

from ringrl.accelerators import Accelerator, find_accelerator

Scheme = Literal["vanilla", "memory_efficient", "blockwise", "ring"]

_BLOCKS = 6
"""Blocks in the memory of a device of the ring: queries, output, a pair (key, value) in use and a pair arriving.

The paper counts each as b c h bytes, so 6 b c h in all, although it speaks of two bytes a number."""


def layer_activation_bytes(
    scheme: Scheme, *, batch: int, width: int, heads: int, length: int, block: int | None = None
) -> int:
    """Largest activation of one layer on one device, bytes in bfloat16 (paper, Table 1).

    The larger of what attention and feed-forward need: vanilla max(2 b n s^2, 8 b s h); memory-efficient attention
    8 b s h (its feed-forward); blockwise feed-forward as well (BPT) 2 b s h; ring 6 b c h, which does not depend on s.

    Args:
        scheme: "vanilla", "memory_efficient", "blockwise" (BPT) or "ring".
        batch: b, sequences.
        width: h, model width.
        heads: n, attention heads.
        length: s, tokens of the whole sequence.
        block: c, tokens of a device's block; needed for "ring" only.

    Raises:
        ValueError: `block` is missing for "ring", or a size is below 1.
    """
    if min(batch, width, heads, length) < 1 or (block is not None and block < 1):
        raise ValueError("batch, width, heads, length and block must be at least 1")
    if scheme == "ring":
        if block is None:
            raise ValueError("the ring's activations depend on the block: give block, the tokens a device")
        return _BLOCKS * batch * block * width
    feed_forward = 8 * batch * length * width
    if scheme == "vanilla":
        return max(2 * batch * heads * length**2, feed_forward)
    return feed_forward if scheme == "memory_efficient" else 2 * batch * length * width


@dataclass(frozen=True)
class Chip:
    """Figures of a chip by which a ring hides its transfers or not (paper, Table 2)."""

    name: str
    flops: float  # peak, bfloat16, 1/s
    hbm_bytes: float
    link_bandwidth: float  # between neighbours of the ring, bytes/s

    @property
    def minimal_block(self) -> float:
        """c, tokens a device from which computing with a block takes as long as sending one: flops / bandwidth.

        A hop computes 4 c^2 h FLOPs and sends a key and a value block of 2 c h bytes each (paper, section 3).
        """
        return self.flops / self.link_bandwidth

    @property
    def minimal_sequence(self) -> float:
        """s = 6 c, tokens a device for which the ring's six blocks have that size."""
        return _BLOCKS * self.minimal_block


PAPER_CHIPS = (
    Chip("A100 NVLink", 312e12, 80e9, 300e9),
    Chip("A100 InfiniBand", 312e12, 80e9, 12.5e9),
    Chip("v3", 123e12, 16e9, 112e9),
    Chip("v4", 275e12, 32e9, 268e9),
    Chip("v5e", 196e12, 16e9, 186e9),
)
# Bandwidths as in the paper: one way, all links of a chip together. TPUs: Cloud TPU's page of TPU7x (peak, HBM, and
# half of the bandwidth that it gives for both ways). NVIDIA: `ringrl.accelerators`, and memory as sold.
_LATER_CHIPS = (
    Chip("v5p", 459e12, 95e9, 600e9),
    Chip("v6e", 918e12, 32e9, 400e9),
    Chip("tpu7x", 2307e12, 192e9, 600e9),
    *(
        Chip(f"{name} {way}", gpu.flops, memory, bandwidth or gpu.link_bandwidth)
        for name, memory in (("H100", 80e9), ("H200", 141e9), ("B200", 180e9))
        if (gpu := find_accelerator(name)) is not None
        for way, bandwidth in (("NVLink", None), ("InfiniBand", gpu.network_bandwidth))
    ),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in (*PAPER_CHIPS, *_LATER_CHIPS)}
"""The paper's chips and those that came after it; TPUs under the names that topologies begin with."""


def layer_flops(*, batch: int, width: int, length: int) -> float:
    """FLOPs of one layer, forward: 24 b s h^2 + 4 b s^2 h (paper, section on scaling the context's FLOPs).

    As the paper counts: a feed-forward of four widths, keys for every head, and the whole square, not the causal half.
    """
    return 24.0 * batch * length * width**2 + 4.0 * batch * length**2 * width


def dataset_flops_ratio(width: int, short: int, long: int) -> float:
    """How many times the FLOPs a data set costs in contexts of `long` tokens, by those in contexts of `short`.

    (6 h + s2) / (6 h + s1): a context s2 / s1 times as long is met s1 / s2 times as often (paper, same section).
    """
    return (6.0 * width + long) / (6.0 * width + short)


def hidden_from(chip: Chip | Accelerator, *, group: int = 1, causal: bool = True, backward: bool = False) -> float:
    """Tokens a device from which a hop of ringrl's own ring computes for longer than it sends.

        c = flops bytes / (bandwidth 2 products group share)    with share = 1/2 if causal, else 1

    Forward, a hop of c tokens computes 2 products of 2 c^2 d FLOPs a query head (half of that where causality is
    balanced) and sends keys and values, 2 c d numbers of 2 bytes a key head. Backward it computes 5 products, with the
    recomputed scores (7 in the GPU kernels, which hide more), and sends keys and values again and their float32
    gradients: 12 c d bytes a key head.

    Args:
        chip: one of `ringrl.accelerators`, whose bandwidth is that of the one link that a hop uses: several times less
            than that of a chip of `CHIPS`, which is that of all its links.
        group: query heads that share a key head.
        causal: half of the pairs are computed, as in the zigzag and striped layouts.
        backward: of the backward pass instead of the forward.
    """
    products, sent = (5, 12) if backward else (2, 4)
    return chip.flops * sent / (chip.link_bandwidth * 2 * products * group * (0.5 if causal else 1.0))
