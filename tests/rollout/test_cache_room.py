"""The room of a cache: what a rollout makes and what a plan counts are the same."""

import jax
import pytest
from flax import nnx

from ringrl.config import ModelConfig
from ringrl.model.cached_decoder import CachedDecoder, room_for
from ringrl.model.output_heads import TanhMSE
from ringrl.model.tokens import ORDER, TokenLayout
from ringrl.model.transformer import Transformer
from ringrl.policy import RolloutSetting
from ringrl.rollout.context import CachedContext

SIZES = {"observation": 3, "action": 2}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 600])
def test_a_rollout_allocates_what_shapes_says(steps, fused, monkeypatch):
    config = ModelConfig(layers=1, width=16, heads=2, kv_heads=1, max_steps=8)
    layout = TokenLayout(ORDER, fused=fused)
    decoder = CachedDecoder(Transformer(config, layout, TanhMSE(), SIZES, rngs=nnx.Rngs(0)))
    made = []
    empty = decoder.empty
    monkeypatch.setattr(decoder, "empty", lambda *size: made.append(empty(*size)) or made[-1])
    CachedContext(decoder, steps, RolloutSetting(3, 1, steps), SIZES)
    planned = decoder.shapes(3, *room_for(steps, layout.tokens_per_step))
    assert len(made) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made[0]) == jax.tree.map(lambda x: (x.shape, x.dtype), planned)
