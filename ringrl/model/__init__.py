"""The sequence model: steps to tokens, a causal transformer with a blockwise MLP, and an output head for actions.

Read `transformer` first, then `layer`; `sharding` is the table of partition rules, `tokens` and `token_ids` the inputs.
"""

from ringrl.model.output_heads import OutputHead, make_head
from ringrl.model.token_ids import TokenIds
from ringrl.model.tokens import TokenLayout
from ringrl.model.transformer import Transformer, make_attend

__all__ = ["OutputHead", "TokenIds", "TokenLayout", "Transformer", "make_attend", "make_head"]
