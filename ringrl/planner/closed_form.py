"""The closed form of the Ring Attention paper (Liu et al., arXiv 2310.01889): Table 1 and Table 2.

It counts one layer's activations and one hop's transfers on paper, so it answers at once and for any chip. What it
leaves out (parameters, optimiser state, the saved inputs of all layers, the compiler's own buffers) is most of what
fills a device; `ringrl.planner.compiled` asks the compiler for that.
"""

from dataclasses import dataclass
from typing import Literal

Scheme = Literal["vanilla", "memory_efficient", "blockwise", "ring"]

KEY_VALUE_BLOCKS = 6
"""Blocks that a device of the ring holds: its queries, its output, a pair (key, value) in use and a pair arriving.

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
        return KEY_VALUE_BLOCKS * batch * block * width
    feed_forward = 8 * batch * length * width
    if scheme == "vanilla":
        return max(2 * batch * heads * length**2, feed_forward)
    return feed_forward if scheme == "memory_efficient" else 2 * batch * length * width


@dataclass(frozen=True)
class Chip:
    """What decides whether a ring hides its transfers (paper, Table 2)."""

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
        return KEY_VALUE_BLOCKS * self.minimal_block


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("A100 NVLink", 312e12, 80e9, 300e9),
        Chip("A100 InfiniBand", 312e12, 80e9, 12.5e9),
        Chip("v3", 123e12, 16e9, 112e9),
        Chip("v4", 275e12, 32e9, 268e9),
        Chip("v5e", 196e12, 16e9, 186e9),
    )
}
"""The paper's chips; TPUs under the names that topologies begin with."""

LINKS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v3", 140e12, 32e9, 100e9),
        Chip("v4", 275e12, 32e9, 45e9),
        Chip("v5p", 459e12, 96e9, 90e9),
        Chip("v5e", 197e12, 16e9, 45e9),
        Chip("v6e", 920e12, 32e9, 90e9),
    )
}
"""What one link of a chip carries one way (Austin et al., How to Scale Your Model, 2025, chapter 2), which is all that
a ring uses: several times less than the paper's figures, which are those of all links together."""


def hidden_from(chip: Chip, *, group: int = 1, causal: bool = True, backward: bool = False) -> float:
    """Tokens a device from which a hop of ringrl's own ring computes for longer than it sends.

    Forward, a hop of c tokens computes 2 products of 2 c^2 d FLOPs a query head (half of that where causality is
    balanced) and sends keys and values, 2 c d numbers of 2 bytes a key head. Backward it computes 5 products, with the
    recomputed scores (7 in the TPU kernels, which hide more), and sends keys and values again and their float32
    gradients: 12 c d bytes a key head.

    Args:
        chip: one of `LINKS`, or of `CHIPS` for the paper's bandwidths.
        group: query heads that share a key head.
        causal: half of the pairs are computed, as in the zigzag and striped layouts.
        backward: of the backward pass instead of the forward.
    """
    products, sent = (5, 12) if backward else (2, 4)
    return chip.flops * sent / (chip.link_bandwidth * 2 * products * group * (0.5 if causal else 1.0))
