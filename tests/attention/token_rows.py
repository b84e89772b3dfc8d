"""Positions and segment ids of short rows, by runs."""

import jax.numpy as jnp
import numpy as np


def positions(*runs):
    return jnp.concatenate([jnp.arange(*run, dtype=jnp.int32) for run in runs])[None]


def constant(value, length=256):
    return jnp.full((1, length), value, jnp.int32)


def segments(*rows):
    """Each row a list of (id, length)."""
    return jnp.asarray([np.repeat([i for i, _ in row], [n for _, n in row]) for row in rows], jnp.int32)
