"""The decoder's settings: its shape, and how it encodes positions, time steps and trials."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ringrl.config_section import ConfigSection

PRESETS: dict[str, dict[str, int | str]] = {
    "tiny": {"layers": 2, "width": 64, "heads": 2, "kv_heads": 2},
    "small": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 4},
    "base": {"layers": 8, "width": 512, "heads": 8, "kv_heads": 4},
    # Ring Attention, section 5.3 (ExoRL). Heads of 128 fill the lanes of a TPU; narrower ones are padded to that.
    "350m": {"layers": 24, "width": 1024, "heads": 8, "kv_heads": 8},
    # LLaMA's shapes (Touvron et al. 2023, table 2; 3b: OpenLLaMA): SwiGLU, and hidden widths of their own.
    "3b": {"layers": 26, "width": 3200, "heads": 32, "kv_heads": 32, "hidden": 8640, "activation": "swiglu"},
    "7b": {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 32, "hidden": 11008, "activation": "swiglu"},
    "13b": {"layers": 40, "width": 5120, "heads": 40, "kv_heads": 40, "hidden": 13824, "activation": "swiglu"},
    "30b": {"layers": 60, "width": 6656, "heads": 52, "kv_heads": 52, "hidden": 17920, "activation": "swiglu"},
}


class ModelConfig(ConfigSection):
    """The decoder. `preset` fills in the shape; fields given beside it win."""

    preset: Literal["tiny", "small", "base", "350m", "3b", "7b", "13b", "30b"] | None = None  # a shape of PRESETS
    layers: int = Field(default=2, ge=1)  # blocks of attention and feed-forward
    width: int = Field(default=64, ge=1)  # model width (d_model)
    heads: int = Field(default=2, ge=1)  # query heads
    kv_heads: int = Field(default=2, ge=1)  # key and value heads (GQA where fewer than `heads`)
    hidden: int | None = Field(default=None, ge=1)  # hidden width of the feed-forward; None: four model widths
    activation: Literal["gelu", "swiglu"] = "gelu"  # of the feed-forward; swiglu has a third matrix
    feed_forward_block: int = Field(default=2048, ge=1)  # tokens a device that the feed-forward holds at once (BPT)
    block: int | None = Field(default=None, ge=1)  # attention block, tokens; None: chosen for the platform
    # What the backward pass finds instead of recomputing it. none: everything; block: a layer's input and its
    # attention's output; full: a layer's input; offload: a layer's input, in host memory.
    remat: Literal["none", "block", "full", "offload"] = "block"
    head_groups: int = Field(default=1, ge=1)  # attention for so many groups of heads in turn: less memory at once
    # Whether scores depend on how far apart tokens are. none: a context is a set of steps, as where trajectories are in
    # no order; longer contexts than trained on then look no different.
    position_encoding: Literal["rotary", "none"] = "rotary"
    # How a token says of which trial of its context it is: by rotary embedding (`ringrl.model.rotary.token_angles`), by
    # the row of a learned table, of which later trials share the last, or not at all.
    trial_encoding: Literal["rotary", "table", "none"] = "rotary"
    max_steps: int = Field(default=1000, ge=1)  # longest trial, agent steps: rows of the table of time steps
    max_trials: int = Field(default=128, ge=1)  # rows of the table of trials, with trial_encoding table; else unused
    # Base of rotary positions: the slowest features turn once in some 2 pi x base tokens. None: `rope_base_for` the
    # tokens of a training row. A run's config.yaml has the number, so a rollout's context does not change it.
    rope_base: float | None = Field(default=None, gt=1)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters and statistics are float32 either way

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        return PRESETS[preset] | values if isinstance(preset, str) and preset in PRESETS else values

    @model_validator(mode="after")
    def _check_shape(self) -> "ModelConfig":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads ({self.heads}): rotary pairs need it")
        if self.trial_encoding == "rotary" and self.width // self.heads < 4:
            raise ValueError("trial_encoding rotary needs heads of 4 features or more: lower heads, or choose another")
        if self.position_encoding == "none" and self.trial_encoding == "rotary":
            raise ValueError("position_encoding none leaves nothing to rotate: set trial_encoding to table or none")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.kv_heads % self.head_groups:
            raise ValueError(f"kv_heads {self.kv_heads} must be a multiple of head_groups {self.head_groups}")
        return self


def rope_base_for(tokens: int) -> float:
    """The base of rotary positions for contexts of so many tokens: 10,000 up to 4,096, then 0.0424 tokens^1.628.

    Below a bound that grows with the context, a query is no longer drawn more to keys like itself than to others at
    every distance; the formula is the line through these bounds for heads of 128 (Men et al. 2024, "Base of RoPE Bounds
    Context Length", arXiv 2405.14591, figure 1). 10,000 is the base of Su et al. 2021, section 3.2.2.
    """
    return 10_000.0 if tokens <= 4096 else round(0.0424 * tokens**1.628, 1)


EARLIER = {"rope_base": 10_000.0, "trial_encoding": "table"}
"""How a model was before these could be set."""


def read_earlier(values: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as plain values, in which settings that an earlier ringrl did not have are what it did."""
    model = values.get("model", {})
    return values | {"model": EARLIER | model} if isinstance(model, dict) else values
