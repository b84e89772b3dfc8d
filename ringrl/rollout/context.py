"""An agent's context while it acts: the recent agent steps, and the KV cache over them.

All environments of a batch add one step at a time together, so a context has one cursor. Where an environment's trial
ends earlier than another's, or its context starts afresh, segment ids keep the steps apart.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int32, Int64

from ringrl.batch import BATCH_SCHEMA, PREVIOUS
from ringrl.model.tokens import StepArrays
from ringrl.model.transformer import Cache, Transformer, make_attend

StepFields = Mapping[str, np.ndarray]  # one step of every environment: fields of `ringrl.batch.Batch`, [envs, ...]


class RecentSteps:
    """The last `capacity` agent steps of every environment, on the host, as rows of a batch are in training.

    Attributes:
        fields: the arrays of `ringrl.batch.Batch` by name, [envs, capacity, ...].
        capacity: steps at most.
        count: steps so far, of which the oldest is at index 0.
    """

    def __init__(self, envs: int, capacity: int, sizes: Mapping[str, int]):
        """No steps. `sizes` are the widths of the observation and the action."""
        self.fields = {name: field.zeros((envs, capacity), sizes) for name, field in BATCH_SCHEMA.items()}
        self.capacity, self.count = capacity, 0

    def append(self, step: StepFields) -> None:
        """Add a step, dropping the oldest when full."""
        if self.count == self.capacity:
            self.keep(self.capacity - 1)
        for name, value in step.items():
            self.fields[name][:, self.count] = value
        self.count += 1

    def amend(self, step: StepFields) -> None:
        """Set fields of the newest step that became known only after it was appended."""
        for name, value in step.items():
            self.fields[name][:, self.count - 1] = value

    def keep(self, steps: int) -> None:
        """Forget all but the newest `steps`."""
        for value in self.fields.values():
            value[:, :steps] = value[:, self.count - steps : self.count]
            value[:, steps:] = 0
        self.count = steps

    def cut(self) -> None:
        """Set the oldest step's `previous_*` to 0, as in training at a context's first step."""
        for name in PREVIOUS.values():
            self.fields[name][:, 0] = 0

    def begin_at(self, first: Int64[np.ndarray, " envs"]) -> dict[str, Int32[np.ndarray, " envs"]]:
        """Let each environment's context begin at its slot `first`, as training's begin: trial 0, position 0.

        Steps before it become padding (segment 0). Returns what was subtracted from `trial` and `position`.
        """
        each, slots = np.arange(len(first)), np.arange(self.count)
        before, after = (slots < first[:, None], slots >= first[:, None])
        taken = {name: self.fields[name][each, first] for name in ("trial", "position")}
        for name, value in taken.items():
            self.fields[name][:, : self.count] -= value[:, None] * after
        for value in self.fields.values():
            value[:, : self.count][before] = 0
        for name in PREVIOUS.values():
            self.fields[name][each, first] = 0
        return taken

    def last(self) -> dict[str, np.ndarray]:
        """A copy of the newest step, [envs, 1, ...]; segment 0 where there is none."""
        at = max(self.count - 1, 0)
        return {name: value[:, at : at + 1].copy() for name, value in self.fields.items()}


class RecomputedContext:
    """Predicts from the last K agent steps by running the model over all of them, as a windowed agent was trained.

    A KV cache would not do: the keys of the oldest step in the window were computed from steps that have left it.
    """

    def __init__(self, model: Transformer, envs: int, steps: int, sizes: Mapping[str, int]):
        self._graph, self._params = nnx.split(model)
        self._recent = RecentSteps(envs, steps, sizes)
        attend = make_attend(None, "contiguous", model.config.block)

        def predict(params: Any, batch: dict[str, jax.Array], at: jax.Array) -> jax.Array:
            raw = nnx.merge(self._graph, params)(batch, attend)
            return jax.lax.dynamic_index_in_dim(raw, at, axis=1, keepdims=False)

        self._predict = jax.jit(predict)

    def predict(self, step: StepFields) -> jax.Array:
        """Raw outputs for the step's action, [envs, action, outputs]; `step` lacks action, reward and completion."""
        self._recent.append(step)
        self._recent.cut()
        return self._predict(self._params, self._recent.fields, np.int32(self._recent.count - 1))

    def amend(self, step: StepFields) -> None:
        """Add what followed the last predicted step: its action, reward and completion."""
        self._recent.amend(step)


class CachedContext:
    """Predicts with a KV cache: a step costs its own tokens, for any length of the context.

    Args:
        model: the decoder.
        envs: environments in the batch.
        steps: agent steps in the context at most.
        trial_steps: agent steps in the longest possible trial. A full context is rebuilt from whole trials if one fits:
            from as many of the newest as leave room for another, and from the steps so far of those that go on. They
            are counted from 0 again, as in training, where an agent never saw more trials than fit. With a context of n
            trials' length, n - 1 earlier trials are always in it; with n = 1, only the present one. A context shorter
            than a trial goes on from its newest half.
        sizes: widths of the observation and the action.
    """

    def __init__(self, model: Transformer, envs: int, steps: int, trial_steps: int, sizes: Mapping[str, int]):
        self._graph, self._params = nnx.split(model)
        self._whole, self._steps = steps >= trial_steps, steps
        # The same for all environments and all trial lengths, so that none depends on the others in its batch.
        self._kept = max(steps - trial_steps, steps // 2)
        self._recent = RecentSteps(envs, steps + 1, sizes)  # one more, until room is made
        self._renumbered = {name: np.zeros(envs, np.int32) for name in ("trial", "position")}
        per_step = model.layout.tokens_per_step
        tokens = steps * per_step
        self._cache = model.empty_cache(envs, tokens)
        self._previous: StepFields = self._recent.last()
        attend = make_attend(None, "contiguous", model.config.block)
        self._decode = jax.jit(lambda params, *args: nnx.merge(self._graph, params).decode(*args), donate_argnums=3)

        def prefill(params: Any, batch: StepArrays, count: jax.Array) -> Cache:
            """The cache of the first `count` of all slots: one shape, compiled once."""
            cache = nnx.merge(self._graph, params).prefill(batch, attend, tokens)
            return cache | {"cursor": count * per_step}

        self._prefill = jax.jit(prefill)

    def predict(self, step: StepFields) -> jax.Array:
        """Raw outputs for the step's action, [envs, action, outputs]; `step` lacks action, reward and completion."""
        if self._record(step):
            self._rebuild(self._recent.fields)
        return self._add(self._recent.last())

    def amend(self, step: StepFields) -> None:
        """Add what followed the last predicted step: its action, reward and completion."""
        self._recent.amend(step)
        self._previous = self._recent.last()

    def _add(self, newest: StepFields) -> jax.Array:
        raw, self._cache = self._decode(self._params, self._previous, newest, self._cache)
        return raw

    def _record(self, step: StepFields) -> bool:
        """Append the step. Returns whether older ones had to be dropped for it."""
        numbers = {name: step[name] - taken for name, taken in self._renumbered.items()}
        self._recent.append(dict(step) | numbers)
        if self._recent.count <= self._steps:
            return False
        self._recent.keep(self._kept + 1)
        if not self._whole:
            self._recent.cut()
            return True
        starts = (self._recent.fields["step"] == 0) & (self._recent.fields["segment_ids"] > 0)
        # Where less than two trials fit and one is longer than what is kept, its newest steps go on.
        first = starts[:, : self._kept + 1].argmax(axis=1)
        if (first == self._kept).all():  # the new step alone
            self._recent.keep(1)
            first = np.zeros_like(first)
        for name, taken in self._recent.begin_at(first).items():
            self._renumbered[name] = self._renumbered[name] + taken
        return True

    def _rebuild(self, shown: StepFields) -> None:
        """Make the cache anew from all but the newest of the recent steps, with the values in `shown`."""
        count = self._recent.count - 1
        slots = {name: np.zeros_like(value[:, : self._steps]) for name, value in self._recent.fields.items()}
        for name, value in slots.items():
            value[:, :count] = shown[name][:, :count]
        self._cache = self._prefill(self._params, slots, np.int32(count))
        # All tokens of the newest of them are in the rebuilt cache, so none of them is added again.
        self._previous = dict(self._previous) | {"segment_ids": np.zeros_like(self._previous["segment_ids"])}
