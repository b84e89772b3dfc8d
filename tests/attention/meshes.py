"""The mesh of a ring of CPU devices, and how its sequences are sharded."""

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

SEQUENCE = P(None, "seq")


def ring_mesh(size):
    return jax.make_mesh((size,), ("seq",), axis_types=(AxisType.Auto,))
