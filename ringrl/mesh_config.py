"""The mesh of devices, and how a ring of them shares out the steps of a row: the section `mesh` of a configuration."""

from typing import Literal

from pydantic import Field, model_validator

from ringrl.choices import Layout
from ringrl.config_section import ConfigSection


class MeshConfig(ConfigSection):
    """Devices along each mesh axis; their product is the number of devices used."""

    data: int = Field(default=1, ge=1)  # batch
    fsdp: int = Field(default=1, ge=1)  # batch, and parameters and optimiser state
    tensor: int = Field(default=1, ge=1)  # heads and feed-forward width
    seq: int = Field(default=1, ge=1)  # the ring: sequence
    # Devices at each station of the ring, which share out its tokens and exchange heads for attention (hybrid).
    heads: int = Field(default=1, ge=1)
    # Which station holds which steps of a row (`ringrl.attention.layout`). auto: zigzag, or stripes where a training
    # counts on its first rows that they share them out better, as where several contexts are packed in a row.
    layout: Literal["auto", "contiguous", "striped", "zigzag"] = "auto"
    stripe: int | None = Field(default=None, ge=1)  # agent steps in each stripe of striped; None: counted so too
    exchange: Literal["ring", "all_gather"] = "ring"  # keys go round, or are gathered at once (short contexts)

    @model_validator(mode="after")
    def _check_stripe(self) -> "MeshConfig":
        if self.stripe is not None and self.layout != "striped":
            raise ValueError(f"stripe {self.stripe} is of the striped layout, not of {self.layout}: leave it out")
        return self

    @property
    def ring_layout(self) -> Layout:
        """The layout; `zigzag` for one that no data have decided."""
        return "zigzag" if self.layout == "auto" else self.layout

    @property
    def pieces(self) -> int:
        """What the agent steps of a row must be a multiple of."""
        return self.seq * {"zigzag": 2, "striped": self.stripe or 1}.get(self.ring_layout, 1) if self.seq > 1 else 1
