"""FLOPs executed, counted on jaxprs, against numbers that one can work out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ringrl.attention.layout import ring_positions, runs_per_shard
from ringrl.planner.work import Ring, executed_flops

ALONE = Ring(tokens=8, size=1, layout="zigzag", stripe=1, halves=False)


def count(f, *arguments, ring=ALONE):
    return executed_flops(jax.make_jaxpr(f)(*arguments).jaxpr, ring)


def test_products_scans_branches_and_recomputation():
    a = jnp.ones((2, 3, 4))
    b = jnp.ones((2, 4, 5))
    product = 2 * 2 * 3 * 5 * 4
    assert count(lambda: jnp.einsum("bij,bjk->bik", a, b)) == product
    square = jnp.ones((4, 4))
    assert count(lambda: lax.scan(lambda x, _: (x @ square, None), square, None, length=7)[0]) == 7 * 2 * 4**3
    assert count(lambda p: lax.cond(p, lambda: square @ square, lambda: square), jnp.array(True)) == 2 * 4**3

    def loss(x):
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ square) @ square))(x))

    # Forward 2, again 2 for the backward pass, and there one by each of the two products (the matrix is no parameter).
    assert count(jax.value_and_grad(loss), square) == 6 * 2 * 4**3
    assert count(jax.grad(loss), square) == 4 * 2 * 4**3  # nothing uses the loss


def test_what_nothing_uses_is_not_counted():
    square = jnp.ones((4, 4))

    def unused(x):
        jnp.sin(x @ square)
        return x @ square

    assert count(unused, square) == 2 * 4**3


def test_every_device_of_a_mesh_counts():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    f = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert count(f, jnp.ones((16, 4))) == 8 * 2 * 2 * 2 * 4


def test_a_product_in_a_loop_without_a_known_end_is_not_counted():
    square = jnp.ones((4, 4))
    assert count(lambda: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ square, square)) is None
    assert count(lambda: lax.while_loop(lambda x: x < 9, lambda x: x + 1, 0)) == 0


@pytest.mark.parametrize(
    "size, layout, stripe",
    [(1, "zigzag", 1), (4, "zigzag", 1), (3, "contiguous", 1), (4, "striped", 1), (3, "striped", 4)],
)
@pytest.mark.parametrize("block_q, block_k", [(4, 4), (2, 8), (8, 2), (5, 3)])
def test_the_share_of_blocks_that_something_is_visible_in(size, layout, stripe, block_q, block_k):
    shard, runs = 16, runs_per_shard(size, layout)
    total = seen = 0
    for device in range(size):
        for other in range(size):
            q = blocks(np.asarray(ring_positions(device, shard, size, layout, stripe)), runs, block_q)
            k = blocks(np.asarray(ring_positions(other, shard, size, layout, stripe)), runs, block_k)
            total += len(q) * len(k)
            seen += sum(a.max() >= b.min() for a in q for b in k)
    ring = Ring(size * shard, size, layout, stripe, halves=False)
    assert ring.share(block_q, block_k, backward=False) == pytest.approx(seen / total)
    # Backward, a device's own keys come twice, half of them hidden each time: as many pairs in one more call.
    twice = Ring(size * shard, size, layout, stripe, halves=True).share(block_q, block_k, backward=True)
    assert twice * (size + 1) / size == pytest.approx(seen / total)


def blocks(positions, runs, block):
    return [run[i : i + block] for run in np.split(positions, runs) for i in range(0, len(run), block)]
