"""The agent steps in each environment's context, on the host, numbered and linked as training's rows are."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int, Int64

from ringrl.batch import BATCH_SCHEMA, PREVIOUS, link_previous
from ringrl.policy import StepFields


class RecentSteps:
    """The last agent steps of every environment, at most `capacity` of each; environments have different numbers.

    A step's `trial`, `position`, `segment_ids` and `previous_*` follow from the steps before it in its environment.

    Attributes:
        fields: the arrays of `ringrl.batch.Batch` by name, [envs, capacity, ...]; zeros where there is no step.
        capacity: steps at most.
        count: int64 [envs], steps of each environment so far, of which the oldest is at index 0.
    """

    def __init__(self, envs: int, capacity: int, sizes: Mapping[str, int]):
        """No steps. `sizes` are the widths of the observation and the action."""
        self.fields = {name: field.zeros((envs, capacity), sizes) for name, field in BATCH_SCHEMA.items()}
        self.capacity, self.count = capacity, np.zeros(envs, np.int64)
        self._before = np.zeros(envs, np.int32)  # position of an environment's oldest step
        self._each = np.arange(envs)

    def append(self, step: StepFields) -> None:
        """Add a step of every environment; there must be room. `step` has `observation`, `return_to_go` and `step`."""
        each, at = self._each, self.count
        last, follows = at - 1, at > 0
        trial = self.fields["trial"][each, last] + (step["step"] == 0)
        derived = {
            "trial": np.where(follows, trial, 0),
            "position": self._before + at,
            "segment_ids": np.ones_like(at),
        }
        within = follows & (step["step"] > 0)
        for name, previous in PREVIOUS.items():
            value = self.fields[name][each, last]
            derived[previous] = np.where(within.reshape(-1, *(1,) * (value.ndim - 1)), value, 0)
        for name, value in (dict(step) | derived).items():
            self.fields[name][each, at] = value
        self.count = at + 1

    def put(self, env: int, steps: StepFields) -> None:
        """Begin an environment's context with steps that are numbered and linked already, fields [steps, ...]."""
        count = len(steps["step"])
        for name, value in steps.items():
            self.fields[name][env, :count] = value
        self.count[env] = count

    def amend(self, outcome: StepFields) -> None:
        """Set fields of every environment's newest step that became known only after it was appended."""
        for name, value in outcome.items():
            self.fields[name][self._each, self.count - 1] = value

    def clear(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Forget all steps of these environments."""
        for value in self.fields.values():
            value[which] = 0
        self.count[which], self._before[which] = 0, 0

    def keep_newest(self, env: int, steps: int) -> None:
        """Forget all but an environment's newest steps, in the midst of a trial: the numbers continue."""
        count = int(self.count[env])
        self._keep(env, np.arange(count - steps, count))
        for name in PREVIOUS.values():
            self.fields[name][env, 0] = 0  # as in training at a context's first step
        self._before[env] += count - steps

    def drop_oldest(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Forget the oldest step of these environments, in the midst of a trial: the numbers continue."""
        for value in self.fields.values():
            value[which, :-1] = value[which, 1:]
            value[which, -1] = 0
        for name in PREVIOUS.values():
            self.fields[name][which, 0] = 0
        self.count[which] -= 1
        self._before[which] += 1

    def keep_trials(self, env: int, steps: Int[np.ndarray, " kept"]) -> None:
        """Keep an environment's steps at these indices, in their order, counted and linked as a chain from trial 0.

        Args:
            env: which environment.
            steps: indices of the steps of whole trials, one trial after the other; the last trial may go on.
        """
        self._keep(env, steps)
        count, row = len(steps), {name: value[env] for name, value in self.fields.items()}
        begins = row["step"][:count] == 0
        row["trial"][:count] = np.maximum(np.cumsum(begins) - 1, 0)
        row["position"][:count] = np.arange(count)
        linked = link_previous({name: value[None, :count] for name, value in row.items()})
        for previous in PREVIOUS.values():
            row[previous][:count] = linked[previous][0]
        self._before[env] = 0

    def _keep(self, env: int, steps: Int[np.ndarray, " kept"]) -> None:
        for value in self.fields.values():
            value[env, : len(steps)] = value[env, steps]
            value[env, len(steps) :] = 0
        self.count[env] = len(steps)

    def trials(self, env: int) -> list[Int64[np.ndarray, " steps"]]:
        """Indices of the steps of each trial in an environment's context, oldest first; the first may be cut."""
        trial = self.fields["trial"][env, : self.count[env]]
        return np.split(np.arange(len(trial)), np.flatnonzero(np.diff(trial)) + 1) if len(trial) else []

    def last(self) -> dict[str, np.ndarray]:
        """A copy of every environment's newest step, [envs, 1, ...]; segment 0 where there is none."""
        at = np.maximum(self.count - 1, 0)
        return {name: value[self._each, at][:, None] for name, value in self.fields.items()}

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, as arrays by name."""
        longest = int(self.count.max())
        kept = {f"steps/{name}": value[:, :longest] for name, value in self.fields.items()}
        return kept | {"count": self.count, "before": self._before}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Become what `state` was made of."""
        for name, value in self.fields.items():
            value[...] = 0
            saved = state[f"steps/{name}"]
            value[:, : saved.shape[1]] = saved
        self.count, self._before = state["count"].copy(), state["before"].copy()
