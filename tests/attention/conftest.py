"""What the attention tests share: random inputs, and the comparison of two attentions forward and backward."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def compile_meshes_anew(request):
    """Programs of several CPU devices do not come from the compile cache in the test files that make a mesh.

    Read back from it (jax 0.10.2), optimised programs of a ring with XLA's local step gave NaN, or ended the process.
    """
    if "AxisType" not in request.path.read_text() and "meshes" not in request.path.read_text():
        yield
        return
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else JAX goes on as it began
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def random_inputs(batch, length, heads, kv_heads, head_dim, seed=0, dtype=jnp.float32):
    """q, k, v and the weights that turn the output into a loss whose gradient is different everywhere."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, h, head_dim) for h in (heads, kv_heads, kv_heads, heads)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


@cache
def with_gradients(attend):
    """attend(q, k, v, segment_ids) -> (out, lse), compiled to give (out, lse, dq, dk, dv) of a loss that uses both."""

    def loss(q, k, v, weights, segments):
        out, lse = attend(q, k, v, segments)
        seen = jnp.where(lse > -1e29, lse, 0.0)
        return (out * weights).astype(jnp.float32).sum() + jnp.sin(seen).sum(), (out, lse)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def compare(attend, oracle, q, k, v, weights, segments=None, *, out_atol=2e-5, gradient_atol=1e-4):
    """Assert that two attentions agree: outputs, log-sum-exp, and the gradients of q, k and v."""
    gradients, results = with_gradients(attend)(q, k, v, weights, segments)
    wanted_gradients, wanted = with_gradients(oracle)(q, k, v, weights, segments)
    for name, a, b in zip(("out", "lse"), results, wanted, strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=out_atol, rtol=out_atol, err_msg=name)
    for name, a, b in zip(("dq", "dk", "dv"), gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=gradient_atol, rtol=gradient_atol, err_msg=name)


@pytest.fixture(name="random_inputs")
def _random_inputs():
    return random_inputs


@pytest.fixture(name="compare")
def _compare():
    return compare


def outputs(f, *arguments):
    """(primitive, shape and dtype) of everything that f computes, at any depth."""
    yield from _outputs(jax.make_jaxpr(f)(*arguments).jaxpr)


def _outputs(jaxpr):
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, v.aval) for v in equation.outvars)
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _outputs(inner)


@pytest.fixture(name="outputs")
def _outputs_fixture():
    return outputs
