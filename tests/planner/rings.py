"""Attention on a ring of devices that are not there, compiled for them."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from ringrl.attention import compiler_options, ring_attention
from ringrl.config import MeshConfig
from ringrl.planner.topology import find_devices
from ringrl.training.mesh import make_mesh


@dataclass(frozen=True)
class Ring:
    """Tokens on a device, and heads."""

    shard: int = 4096
    heads: int = 8
    kv_heads: int = 4
    dim: int = 128

    def sent(self, size: int) -> int:
        """Bytes that a device sends, forward and backward: keys and values make size - 1 hops forward and as many
        backward, in bfloat16 and with their own number of heads; their float32 gradients make `size` hops."""
        keys = self.shard * self.kv_heads * self.dim * 2
        return (size - 1) * 2 * 2 * keys + size * 2 * (2 * keys)


def compile_ring(topology, kernel=None, layers=None, ring=Ring()):
    """Attention, forward and backward, on a ring of all devices, or a scan over layers of it; and the ring's size."""
    devices = find_devices(topology)
    mesh = make_mesh(MeshConfig(seq=len(devices)), devices)
    spec = P(None, "seq")
    attend = jax.shard_map(
        partial(ring_attention, axis_name="seq", kernel=kernel), mesh=mesh, in_specs=spec, out_specs=spec
    )

    def train(q, k, v, weights):
        def layer(x, _):
            return attend(x, x[:, :, : ring.kv_heads] + k, x[:, :, : ring.kv_heads] * v), None

        def loss(q):
            if layers is None:
                return attend(q, k, v)
            return lax.scan(jax.checkpoint(layer, prevent_cse=False), q, None, length=layers)[0]

        out, backward = jax.vjp(loss, q) if layers else jax.vjp(attend, q, k, v)
        return out, backward(weights)

    def shape(heads):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((1, ring.shard * len(devices), heads, ring.dim), jnp.bfloat16, sharding=sharding)

    arguments = shape(ring.heads), shape(ring.kv_heads), shape(ring.kv_heads), shape(ring.heads)
    options = compiler_options(devices[0].platform)
    return jax.jit(train, compiler_options=options).lower(*arguments).compile(), len(devices)
