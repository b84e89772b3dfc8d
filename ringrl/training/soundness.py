"""Whether an update left numbers that can be trained on: measured on the devices with each step, and read one later."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

LARGEST_WEIGHT = 1e6
"""Of a network that has not diverged: with Adam a weight moves by about the learning rate a step, and weights that are
good for anything are far smaller."""

_SHOWN = 8  # indices that a message lists


def largest_magnitude(tree: Any) -> jax.Array:
    """The greatest magnitude of a pytree's numbers in floating point, float32 []; 0 where there are none, NaN where one
    is."""
    found = [
        jnp.max(jnp.abs(x)).astype(jnp.float32)
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.floating) and x.size
    ]
    return jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *found]))


def magnitudes_of_state(state: Any) -> dict[str, jax.Array]:
    """`weight_max` and `moment_max` of any pytree; what optax keeps in it is the optimisers'."""
    is_optimizer = lambda node: type(node).__module__.split(".")[0] == optax.__name__  # noqa: E731
    nodes = jax.tree.leaves(state, is_leaf=is_optimizer)
    return {
        "weight_max": largest_magnitude([each for each in nodes if not is_optimizer(each)]),
        "moment_max": largest_magnitude([each for each in nodes if is_optimizer(each)]),
    }


def find_unsound(numbers: Mapping[str, float]) -> str | None:
    """The first of a step's metrics that nothing good can come of, in words such as `loss is nan`; None: there is none.

    That is one that is not finite, or a `weight_max` above `LARGEST_WEIGHT`.
    """
    for name, value in numbers.items():
        if not math.isfinite(value) or (name == "weight_max" and value > LARGEST_WEIGHT):
            return f"{name} is {value:g}"
    return None


class UpdateCheck:
    """Looks at the metrics of every step of a training: at once where asked to, else while the next is computed.

    Attributes:
        checkpoint: the step of the newest checkpoint; None: there is none. Set by who writes them.
    """

    def __init__(self, explain: Callable[[int, str], tuple[str, str]], step_sizes: str, checkpoint: int | None):
        """`explain` and `step_sizes` are those of `ringrl.agent.Trainer`."""
        self._explain, self._step_sizes, self.checkpoint = explain, step_sizes, checkpoint
        self._before: tuple[int, Mapping[str, jax.Array]] | None = None

    def passed(self, step: int, values: Mapping[str, jax.Array], *, now: bool) -> dict[str, float]:
        """Check the step before this one and, with `now`, this one, whose metrics are returned as numbers.

        Raises FloatingPointError, which names the step, the episodes of its batch and what to look at.
        """
        if self._before is not None:
            self._numbers(*self._before)
        self._before = None if now else (step, values)
        return self._numbers(step, values) if now else {}

    def _numbers(self, step: int, values: Mapping[str, jax.Array]) -> dict[str, float]:
        numbers = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        if (found := find_unsound(numbers)) is None:
            return numbers
        rate = f" ({numbers['learning_rate']:g} there)" if "learning_rate" in numbers else ""
        kept = "there is no checkpoint yet" if self.checkpoint is None else f"checkpoint {self.checkpoint} is good"
        what, batch = self._explain(step, found)
        raise FloatingPointError(f"{what}: lower {self._step_sizes}{rate}, or check the batch, {batch}; {kept}")


def listed(items: Sequence[int] | Sequence[str] | np.ndarray) -> str:
    """The first of some indices or names, in order and each once, and how many more there are."""
    found = np.unique(items).tolist()
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return ", ".join(map(str, found[:_SHOWN])) + more


def largest_number(arrays: Mapping[str, np.ndarray]) -> str:
    """Of the arrays in floating point, the one with the greatest magnitude, in words; a NaN counts as that."""
    tops = {name: float(np.abs(x).max()) for name, x in arrays.items() if x.dtype.kind == "f" and x.size}
    if not tops:
        return "no numbers"
    name = max(tops, key=lambda each: math.inf if math.isnan(tops[each]) else tops[each])
    return f"whose largest number is {tops[name]:g}, of {name}"
