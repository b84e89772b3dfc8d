"""A sequence spread over a mesh axis: which tokens are in this device's shard, and which in the others'."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from ringrl.attention.block_attention import NEVER_SEEN
from ringrl.attention.layout import ring_positions
from ringrl.attention.local_step import LocalStep, TokenIndex, query_tokens
from ringrl.attention.tiling import Cut


@dataclass(frozen=True)
class Shards:
    """What is static about attention over one mesh axis."""

    axis_name: str
    size: int  # devices
    layout: str
    length: int  # tokens a device
    causal: bool
    return_lse: bool
    step: LocalStep
    stripe: int = 1  # tokens in each stripe of the striped layout

    def tie(self, segments: Array | None, *data: Array) -> tuple[Int32[Array, ""], Array | None, *tuple[Array, ...]]:
        """This device's index, its segment ids, and `data`, all unchanged.

        The barrier ties what masks are made of to the data. Otherwise, in a scan over layers, JAX's partial evaluation
        may see that masks (or keys that nobody differentiates) are known beforehand, and stack those of all hops before
        the layers run.
        """
        return lax.optimization_barrier((lax.axis_index(self.axis_name), segments, *data))

    def q_tokens(self, index: Int32[Array, ""], segments: Array | None) -> TokenIndex:
        """Tokens of the queries of device `index`."""
        return query_tokens(self._positions(index), segments, self.causal)

    def k_tokens(self, index: Int32[Array, ""], segments: Array | None) -> TokenIndex:
        """Tokens of the keys that started on device `index`, counted around the ring (-1 is the last)."""
        return TokenIndex(self._positions(lax.rem(index + self.size, jnp.int32(self.size))), segments)

    def all_k_tokens(self, segments: Array | None) -> TokenIndex:
        """Tokens of the keys of all devices, one after the other."""
        positions = [self._positions(jnp.int32(index)) for index in range(self.size)]
        return TokenIndex(jnp.concatenate(positions, axis=1), segments)

    def _positions(self, index: Int32[Array, ""]) -> Int32[Array, "1 {self.length}"]:
        return ring_positions(index, self.length, self.size, self.layout, self.stripe)[None]


def halves(tokens: TokenIndex, cut: Cut) -> tuple[TokenIndex, TokenIndex]:
    """The keys' tokens twice: the second half hidden, then the first. They are cut between two blocks.

    What is hidden is not computed, so that the two steps together cost as much as one.
    """
    first = jnp.arange(cut.length, dtype=jnp.int32)[None] < cut.middle
    early = jnp.where(first, tokens.positions, NEVER_SEEN)
    late = jnp.where(first, NEVER_SEEN, tokens.positions)
    return tokens._replace(positions=early), tokens._replace(positions=late)
