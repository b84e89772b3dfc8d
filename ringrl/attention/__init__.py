"""Exact attention: dense (the oracle), blockwise, over a ring of devices, and of new queries to a KV cache."""

from ringrl.attention.block_attention import MASKED_LSE
from ringrl.attention.blockwise import blockwise_attention
from ringrl.attention.decode import decode_attention
from ringrl.attention.dense import dense_attention
from ringrl.attention.layout import Layout, from_ring_order, ring_positions, to_ring_order
from ringrl.attention.options import compiler_options
from ringrl.attention.ring import Exchange, ring_attention

__all__ = [
    "MASKED_LSE",
    "Exchange",
    "Layout",
    "blockwise_attention",
    "compiler_options",
    "decode_attention",
    "dense_attention",
    "from_ring_order",
    "ring_attention",
    "ring_positions",
    "to_ring_order",
]
