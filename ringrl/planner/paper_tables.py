"""The Ring Attention paper's tables (Liu et al., arXiv 2310.01889), for any width and length and for later chips."""

from dataclasses import dataclass

from rich.table import Table

from ringrl.accelerators import find_accelerator
from ringrl.config import RunConfig
from ringrl.planner.closed_form import (
    CHIPS,
    PAPER_CHIPS,
    Scheme,
    dataset_flops_ratio,
    hidden_from,
    layer_activation_bytes,
    layer_flops,
)
from ringrl.planner.plan_table import format_bytes, numbers_table

_SCHEMES: dict[Scheme, str] = {
    "vanilla": "vanilla",
    "memory_efficient": "memory-efficient attention",
    "blockwise": "and feed-forward (BPT)",
    "ring": "Ring Attention",
}
_CONTEXTS = (32_768, 131_072, 1_048_576, 8_388_608)
_TPUS = ("TPU v3", "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x")
SHORT = 4_096
"""Context with which the paper compares the FLOPs of longer ones."""


@dataclass(frozen=True)
class Shape:
    """What Table 1 depends on; by default LLaMA 7B with a million tokens over 256 devices."""

    batch: int = 1
    width: int = 4096
    heads: int = 32
    length: int = 1_048_576
    block: int = 4096  # tokens a device
    layers: int = 32


def shape_of(config: RunConfig, row_tokens: int) -> Shape:
    """The shape of a config whose rows have so many tokens."""
    m, batch = config.model, config.training.batch
    return Shape(batch, m.width, m.heads, row_tokens, max(row_tokens // config.mesh.seq, 1), m.layers)


def rows_of(shape: Shape) -> dict[str, list[dict]]:
    """The rows of the tables, by the table's name."""
    sizes = {"batch": shape.batch, "width": shape.width, "heads": shape.heads, "length": shape.length}
    return {
        "layer_activations": [
            {"scheme": scheme, "bytes": layer_activation_bytes(scheme, **sizes, block=shape.block)}
            for scheme in _SCHEMES
        ],
        "minimal_sequence": [
            {
                "chip": chip.name,
                "in_paper": chip in PAPER_CHIPS,
                "flops": chip.flops,
                "hbm_bytes": chip.hbm_bytes,
                "bandwidth": chip.link_bandwidth,
                "minimal_block": chip.minimal_block,
                "minimal_sequence": chip.minimal_sequence,
            }
            for chip in CHIPS.values()
        ],
        "hidden_from": [
            {
                "chip": name,
                "not_causal": hidden_from(chip, causal=False),
                "causal": hidden_from(chip),
                "causal_backward": hidden_from(chip, backward=True),
                "causal_backward_4_queries": hidden_from(chip, backward=True, group=4),
            }
            for name in _TPUS
            if (chip := find_accelerator(name))
        ],
        "training_flops": [
            {
                "context": context,
                # Backward costs twice the forward pass.
                "step": 3 * shape.layers * layer_flops(batch=shape.batch, width=shape.width, length=context),
                "dataset_ratio": dataset_flops_ratio(shape.width, SHORT, context),
            }
            for context in sorted({SHORT, *_CONTEXTS, shape.length})
        ],
    }


def to_tables(shape: Shape) -> list[Table]:
    """Table 1, Table 2, the ring's own block (`hidden_from`), and the FLOPs of longer contexts."""
    rows = rows_of(shape)
    about = f"width {shape.width}, {shape.heads} heads, {shape.length:,} tokens, batch {shape.batch}"
    first = numbers_table(f"Table 1: largest activation of a layer, bfloat16; {about}", "scheme", "bytes")
    for row in rows["layer_activations"]:
        name = _SCHEMES[row["scheme"]]
        first.add_row(name if row["scheme"] != "ring" else f"{name}, {shape.block:,} tokens a device", _bytes(row))
    title = "Table 2: shortest block and sequence a device that hide a ring's transfers, thousands of tokens"
    second = numbers_table(title, "chip", "TFLOP/s", "HBM, GB", "links, GB/s", "block", "sequence")
    for row in rows["minimal_sequence"]:
        figures = (row["flops"] / 1e12, row["hbm_bytes"] / 1e9, row["bandwidth"] / 1e9)
        needed = (row["minimal_block"] / 1e3, row["minimal_sequence"] / 1e3)
        name = row["chip"] if row["in_paper"] else f"{row['chip']} (later)"
        second.add_row(name, *(f"{x:g}" for x in figures), *(f"{x:.1f}" for x in needed))
    title = "Shortest block a device that hides a hop of this ring over one link, thousands of tokens"
    third = numbers_table(title, "chip", "not causal", "causal", "backward", "backward, 4 queries a key head")
    for row in rows["hidden_from"]:
        blocks = (row["not_causal"], row["causal"], row["causal_backward"], row["causal_backward_4_queries"])
        third.add_row(row["chip"], *(f"{tokens / 1e3:.1f}" for tokens in blocks))
    title = f"FLOPs of longer contexts; width {shape.width}, {shape.layers} layers"
    fourth = numbers_table(title, "context", "a step", f"a data set, by contexts of {SHORT:,}")
    for row in rows["training_flops"]:
        fourth.add_row(f"{row['context']:,}", f"{row['step']:.3g}", f"{row['dataset_ratio']:.2f}")
    return [first, second, third, fourth]


def _bytes(row: dict) -> str:
    return format_bytes(row["bytes"])
