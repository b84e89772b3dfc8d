"""An agent's context while it acts: the recent agent steps of every environment, and the KV cache over them.

Environments are independent: each has its own length, makes room when it is full, and starts its next trial at once.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool

from ringrl.attention import KVCache
from ringrl.errors import UserError
from ringrl.model.cached_decoder import CachedDecoder, room_for
from ringrl.policy import RolloutSetting, StepFields
from ringrl.rollout.full_context import Dropped, RoomMaker
from ringrl.rollout.model_calls import ModelCalls
from ringrl.rollout.recent_steps import RecentSteps


class RecomputedContext:
    """Predicts from the last K agent steps by running the model over all of them, as a windowed agent was trained.

    A KV cache would not do: the keys of the oldest step in the window were computed from steps that have left it.
    """

    dropped: Sequence[Dropped] = ()  # a window loses steps by design

    def __init__(self, calls: ModelCalls, envs: int, steps: int, sizes: Mapping[str, int]):
        self._calls, self._recent = calls, RecentSteps(envs, steps, sizes)

    def predict(self, step: StepFields) -> jax.Array:
        """Raw outputs for the step's action, [envs, action, outputs]."""
        full = self._recent.count == self._recent.capacity
        if full.any():
            self._recent.drop_oldest(full)
        self._recent.append(step)
        return self._calls.window(self._recent.fields, self._recent.count.astype(np.int32) - 1)

    def amend(self, outcome: StepFields) -> None:
        """Add what followed the last predicted step: its action, reward and completion."""
        self._recent.amend(outcome)

    def clear(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Forget all steps of these environments."""
        self._recent.clear(which)

    def follow(self, step: StepFields) -> None:
        """Add a step whose action is not the model's, without asking it."""
        self.predict(step)

    retire = clear  # a window costs the same, full or empty

    @property
    def begun(self) -> bool:
        """Whether there are steps."""
        return bool(self._recent.count.any())

    def room(self) -> Bool[np.ndarray, " envs"]:
        """A window always has room."""
        return np.ones(len(self._recent.count), bool)

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, as arrays by name."""
        return self._recent.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Become what `state` was made of."""
        self._recent.restore(state)


class CachedContext:
    """Predicts with a KV cache: a step costs its own tokens and reading those in the context, of any number.

    Args:
        decoder: the model's calls.
        steps: agent steps in the context at most.
        setting: environments, the longest trial, and what is kept of a full context.
        sizes: widths of the observation and the action.
        demonstrations: what every environment's context begins with, fields of `ringrl.batch.Batch`, [steps, ...],
            numbered and linked: one for all environments, which then share its cache, or one for each.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        steps: int,
        setting: RolloutSetting,
        sizes: Mapping[str, int],
        demonstrations: StepFields | Sequence[StepFields] = (),
    ):
        self._decoder, self._steps = decoder, steps
        self._per_step = decoder.model.layout.tokens_per_step
        self._chunk = room_for(steps, self._per_step).call // self._per_step
        envs = setting.environments
        self._recent = RecentSteps(envs, steps, sizes)
        self._room_maker = RoomMaker(steps, setting.trial_steps, setting.when_full)
        self._cache, self._prompt = self._empty(envs, steps), None
        self._begun = np.zeros(envs, np.int64)  # trials so far, also those that are no longer in the context
        self._retired = np.zeros(envs, bool)
        # Whether all tokens of an environment's last step are in the cache, or there is none.
        self._complete = np.ones(envs, bool)
        self._behind = np.zeros(envs, bool)  # whether steps are missing in an environment's cache
        self._segment = np.ones(envs, np.int32)  # 1 sees the prompt, 2 does not
        self._previous: StepFields = self._recent.last()
        self._begin(demonstrations)

    @property
    def dropped(self) -> Sequence[Dropped]:
        """What was dropped, in order."""
        return self._room_maker.dropped

    def _empty(self, envs: int, steps: int) -> KVCache:
        return self._decoder.empty(envs, room_for(steps, self._per_step).capacity, self._chunk * self._per_step)

    def _begin(self, demonstrations: StepFields | Sequence[StepFields]) -> None:
        given = [demonstrations] * len(self._begun) if isinstance(demonstrations, Mapping) else demonstrations
        for env, steps in enumerate(given):
            self._recent.put(env, steps)
        if isinstance(demonstrations, Mapping):
            count = len(demonstrations["step"])
            cache = self._empty(1, count)
            one = {name: value[:1] for name, value in self._recent.fields.items()}
            self._prompt = self._fill(cache, one, np.array([count]), np.ones(1, np.int32))
        elif len(given):
            self._cache = self._fill(self._cache, self._recent.fields, self._recent.count, self._segment)
        self._previous = self._recent.last()

    def predict(self, step: StepFields) -> jax.Array:
        """Raw outputs for the step's action, [envs, action, outputs].

        `step` has `observation`, `return_to_go` and `step` of every environment.
        """
        moved = self._record(step)
        if moved.any():
            self._rebuild(moved, self._recent.fields, self._recent.count - 1)
        return self._add(self._recent.last())

    def follow(self, step: StepFields) -> None:
        """Add a step whose action is not the model's. Its keys and values are computed at the next `predict`, together
        with those of all such steps."""
        self._record(step)
        self._behind[:] = True

    def amend(self, outcome: StepFields) -> None:
        """Add what followed the last predicted step: its action, reward and completion."""
        self._recent.amend(outcome)
        self._previous = self._recent.last()

    def clear(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Forget all steps of these environments, demonstrations too."""
        self._recent.clear(which)
        self._forget(which)
        self._begun[which] = 0

    def retire(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Forget these environments' steps, and what is dropped in them from now on: nobody reads their actions."""
        if (which & ~self._retired).any():
            self.clear(which & ~self._retired)
            self._retired |= which

    @property
    def begun(self) -> bool:
        """Whether there are steps, of demonstrations or its own."""
        return bool(self._recent.count.any())

    def room(self) -> Bool[np.ndarray, " envs"]:
        """Whether another trial may begin in each environment."""
        return self._room_maker.room(self._recent)

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, as arrays by name; between steps. The cache is not kept: it follows from them."""
        dropped = np.array([[d.env, d.at_trial, d.trials, d.steps] for d in self.dropped], np.int64).reshape(-1, 4)
        return self._recent.state() | {"begun": self._begun, "dropped": dropped}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Become what `state` was made of. Raises UserError where that was a longer context."""
        if state["steps/step"].shape[1] > self._recent.capacity:
            raise UserError("the saved session's context is longer than this one's; start it as it was started")
        self._recent.restore(state)
        self._begun = state["begun"].copy()
        self._room_maker.dropped = [Dropped(*map(int, row)) for row in state["dropped"]]
        self._rebuild(np.ones(len(self._begun), bool), self._recent.fields, self._recent.count)
        self._behind[:] = False
        self._previous = self._recent.last()

    def _record(self, step: StepFields) -> Bool[np.ndarray, " envs"]:
        """Append the step. Returns the environments whose caches do not follow from what they were: where older steps
        had to be dropped for it, or steps before it are missing."""
        begins, full = step["step"] == 0, self._recent.count == self._steps
        if (full & self._retired).any():
            self.clear(full & self._retired)
        full &= ~self._retired
        for env in np.flatnonzero(full).tolist():
            at_trial = int(self._begun[env] + begins[env]) - 1
            self._room_maker.make_room(self._recent, env, bool(begins[env]), at_trial)
        self._begun += begins
        self._recent.append(step)
        moved, self._behind = full | self._behind, np.zeros_like(self._behind)
        return moved

    def _add(self, newest: StepFields) -> jax.Array:
        previous = dict(self._previous)
        previous["segment_ids"] = np.where(self._complete, 0, self._segment)[:, None].astype(np.int32)
        newest = dict(newest) | {"segment_ids": newest["segment_ids"] * self._segment[:, None]}
        raw, self._cache = self._decoder.step(previous, newest, self._cache, self._prompt)
        self._complete[:] = False
        return raw

    def _forget(self, which: Bool[np.ndarray, " envs"]) -> None:
        self._cache = self._decoder.forget(self._cache, which)
        self._segment[which], self._complete[which] = 2, True

    def _rebuild(self, which: Bool[np.ndarray, " envs"], shown: StepFields, count: np.ndarray) -> None:
        """Make these environments' caches anew from the first `count` steps of each in `shown`."""
        self._forget(which)
        if 2 * which.sum() > len(which) or not self._decoder.rows_together:
            self._cache = self._fill(self._cache, shown, np.where(which, count, 0), self._segment)
            return
        # A few of many: each by itself, for a call on the whole batch computes all of its rows.
        for env in np.flatnonzero(which).tolist():
            one = {name: value[env : env + 1] for name, value in shown.items()}
            row = self._fill(self._empty(1, self._steps), one, count[env : env + 1], self._segment[env : env + 1])
            self._cache = self._decoder.put_row(self._cache, row, env)

    def _fill(self, cache: KVCache, shown: StepFields, count: np.ndarray, segment: np.ndarray) -> KVCache:
        """Append the first `count` steps of each row, chunk by chunk, all of one shape, which is compiled once."""
        for start in range(0, int(count.max(initial=0)), self._chunk):
            slots = np.arange(start, start + self._chunk)
            there = slots < count[:, None]
            picked = np.minimum(slots, shown["step"].shape[1] - 1)
            chunk = {name: value[:, picked] for name, value in shown.items()}
            chunk["segment_ids"] = (chunk["segment_ids"] * there * segment[:, None]).astype(np.int32)
            _, cache = self._decoder.fill(chunk, cache)
        return cache
