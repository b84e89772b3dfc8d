"""The running moments that normalise the RND reward."""

import jax
import jax.numpy as jnp
import numpy as np

from ringrl.collect.rnd import Moments, merge


def test_running_moments_equal_those_of_all_rows():
    rng = np.random.default_rng(0)
    chunks = [rng.normal(3.0, 2.0, size=(rows, 2)).astype(np.float32) for rows in (4, 1, 9)]
    moments = Moments(jnp.zeros(()), jnp.zeros(2), jnp.ones(2))
    for chunk in chunks:
        moments = jax.jit(merge)(moments, jnp.asarray(chunk))
    rows = np.concatenate(chunks)
    assert float(moments.count) == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-4)
