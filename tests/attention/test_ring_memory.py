"""What a ring keeps in memory: no masks of all hops in a scan over layers, and nothing that grows with the ring."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding

from ringrl.attention import ring_attention
from tests.attention.meshes import SEQUENCE, ring_mesh


def gradient_of_layers(layers, length, block, kernel):
    """The gradient of scanned, rematerialised layers around the ring, and arguments for it (shapes only)."""
    attend = jax.shard_map(
        lambda q, k, v, s: ring_attention(
            q, k, v, axis_name="seq", segment_ids=s, block_q=block, block_k=block, kernel=kernel
        ),
        mesh=ring_mesh(4),
        in_specs=SEQUENCE,
        out_specs=SEQUENCE,
    )
    segments = jnp.ones((1, length), jnp.int32)

    @jax.checkpoint
    def layer(x, w):
        h = jnp.einsum("bshd,de->bshe", x, w)
        return x + attend(h, h, h, segments), None

    def loss(ws, x):
        return (lax.scan(layer, x, ws)[0] ** 2).sum()

    f32 = jnp.float32
    return jax.grad(loss), (jax.ShapeDtypeStruct((layers, 8, 8), f32), jax.ShapeDtypeStruct((1, length, 2, 8), f32))


@pytest.mark.parametrize("kernel", ["xla", None])
def test_a_scan_over_layers_hoists_no_masks(outputs, kernel):
    length, block, layers = 512, 16, 4
    shard = length // 4
    gradient, arguments = gradient_of_layers(layers, length, block, kernel)
    computed = list(outputs(gradient, *arguments))
    names = {name for name, _ in computed}
    assert "ppermute" in names and names & {"while", "ffi_call"}
    # The largest array is the saved input of every layer; masks would be [layers or hops, blocks, blocks, c, c].
    assert max(aval.size for _, aval in computed) == layers * length * 2 * 8
    # Without the barrier, the tokens of every hop come out of the scan over hops: [hops, blocks, 1, c].
    stacked = [aval for name, aval in computed if name == "scan" and aval.dtype in (jnp.int32, jnp.bool_)]
    assert max(aval.size for aval in stacked) <= shard


def test_compiled_memory_of_layers_grows_by_their_saved_inputs():
    def temporaries(layers, length):
        gradient, arguments = gradient_of_layers(layers, length, 32, "xla")
        return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    two, eight = temporaries(2, 1024), temporaries(8, 1024)
    assert eight - two < 2 * 6 * 1024 * 2 * 8 * 4  # twice what six saved inputs take
    assert temporaries(2, 4096) < 4.5 * two


@pytest.mark.parametrize("kernel", ["xla", None])
def test_a_device_s_memory_is_linear_in_its_shard_and_does_not_depend_on_the_ring(kernel):
    def temporaries(size, shard):
        attend = jax.shard_map(
            partial(ring_attention, axis_name="seq", block_q=64, block_k=64, kernel=kernel),
            mesh=ring_mesh(size),
            in_specs=SEQUENCE,
            out_specs=SEQUENCE,
        )
        x = jax.ShapeDtypeStruct(
            (1, size * shard, 2, 32), jnp.float32, sharding=NamedSharding(ring_mesh(size), SEQUENCE)
        )
        gradient = jax.jit(jax.grad(lambda q, k, v: attend(q, k, v).sum(), (0, 1, 2)))
        return gradient.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    small, middle, large = (temporaries(4, shard) for shard in (1024, 2048, 4096))
    # Where memory is a constant and so much a token, every doubling adds twice what the one before it added.
    assert 1.8 < (large - middle) / (middle - small) < 2.2
    assert large < 4096 * 4096 * 4  # one head's scores of the shard against itself
    assert temporaries(8, 2048) < 1.05 * middle
