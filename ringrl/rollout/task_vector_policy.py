"""The policy of an agent that is conditioned on a task vector z, which it computes from the rewards in its context.

z is the sum of reward times B(state) over the context's steps, scaled to the norm sqrt(d): B encodes normalised
observations in d numbers (Touati & Ollivier 2021, section 3: z = E[r(s) B(s)]; the scale of z does not matter).

| of the context | what is taken of it |
|---|---|
| step t of a trial | its reward with the observation of step t + 1, the state in which it was earned |
| a trial's last step | nothing, for the observation after it is not in a context |
| no reward but 0 so far | a random z on the sphere, drawn for each environment and trial |

Sums cost the same after any number of steps, so a context is never full.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ringrl.errors import UserError
from ringrl.policy import RolloutSetting, RolloutSpec, StepFields
from ringrl.rollout.exploration import Exploration
from ringrl.rollout.full_context import Dropped
from ringrl.sampling.normalizer import Normalizer

ENCODED_AT_ONCE = 4096  # demonstrated states in a call, all of one shape, which is compiled once
_STATE = ("earlier", "present", "reward", "pending", "trial")


@dataclass(frozen=True, eq=False)
class TrainedTaskVectorPolicy:
    """A `ringrl.policy.TrainedPolicy`: such an agent of a checkpoint."""

    encode: Callable[[np.ndarray], np.ndarray]
    """B: normalised observations, float32 [n, O] -> float32 [n, d]."""
    action: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Normalised observations, float32 [envs, O], and task vectors, float32 [envs, d] -> actions, float32 [envs, A]."""
    dimension: int
    """d."""
    normalizer: Normalizer
    """The run's scales."""
    step: int
    """Gradient steps that it was trained for."""

    def start(self, spec: RolloutSpec, setting: RolloutSetting) -> "TaskVectorPolicy":
        """See `ringrl.policy.TrainedPolicy`."""
        return TaskVectorPolicy(self, setting)


class TaskVectorPolicy:
    """A `ringrl.policy.ContextPolicy` whose context is a sum.

    Attributes:
        target: None, for it is not conditioned on a return.
        dropped: nothing ever is.
        demonstrations: trajectories with which the context began.
    """

    target: None = None
    dropped: Sequence[Dropped] = ()

    def __init__(self, trained: TrainedTaskVectorPolicy, setting: RolloutSetting):
        """An empty context in every environment.

        An ablation of the setting (`ringrl.rollout.ablation`) leaves out the earlier trials' sum, exchanges it between
        environments, or takes all rewards for 0; `shuffled` changes nothing, for a sum has no order.
        """
        envs = setting.environments
        self._trained, self._setting, self.demonstrations, self._begun = trained, setting, 0, False
        self._exploration = Exploration(setting)
        # The sums of earlier and of the present trials; float64, for rewards may be as small as 1e-30.
        self._earlier, self._present = (np.zeros((envs, trained.dimension)) for _ in range(2))
        self._reward = np.zeros(envs, np.float32)  # of the last step,
        self._pending = np.zeros(envs, bool)  # and whether the observation after it is yet to come
        self._trial = np.zeros(envs, np.int64)  # trials begun

    def demonstrate(self, steps: StepFields | Sequence[StepFields]) -> None:
        """See `ringrl.policy.ContextPolicy`. Raises UserError where the context has begun."""
        if self._begun or self.demonstrations:
            raise UserError("demonstrations: the context has begun already; give them once, before the first act")
        rows = [steps] if isinstance(steps, Mapping) else steps
        self.demonstrations = max(int(row["trial"].max(initial=-1)) + 1 for row in rows)
        self._earlier += self._sums(rows)  # of one row for all environments, or of each

    def _sums(self, rows: Sequence[StepFields]) -> Float64[np.ndarray, "rows d"]:
        """The sum of reward times B of each row's steps."""
        sums = np.zeros((len(rows), self._trained.dimension))
        if self._setting.ablation == "blind":
            return sums
        earned = [_earned(row) for row in rows]
        row = np.repeat(np.arange(len(rows)), [len(step) for step in earned])
        observation = np.concatenate(
            [fields["observation"][step + 1] for fields, step in zip(rows, earned, strict=True)]
        )
        reward = np.concatenate([fields["reward"][step] for fields, step in zip(rows, earned, strict=True)])
        for part, encoded in self._encoded(observation):
            np.add.at(sums, row[part], reward[part, None] * encoded)
        return sums

    def _encoded(
        self, observation: Float32[np.ndarray, "n observation"]
    ) -> Iterator[tuple[slice, Float64[np.ndarray, "_some d"]]]:
        for start in range(0, len(observation), ENCODED_AT_ONCE):
            part = observation[start : start + ENCODED_AT_ONCE]
            padded = np.zeros((ENCODED_AT_ONCE, observation.shape[1]), np.float32)
            padded[: len(part)] = part
            yield slice(start, start + len(part)), self._trained.encode(padded)[: len(part)].astype(np.float64)

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """These environments were reset: what they earned stays in the sum."""
        self._earlier[which] += self._present[which]
        self._present[which], self._pending[which] = 0.0, False
        self._trial += which
        self._exploration.begin_trial(which)

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """The action of the policy of the context's task vector, the last reward included; or a random one."""
        seen = self._trained.normalizer.normalize_observation(observation)
        earned = np.where(self._pending, self._reward, 0.0)
        if earned.any():
            self._present += earned[:, None] * self._trained.encode(seen).astype(np.float64)
        self._pending[:], self._begun = False, True
        action = self._trained.action(seen, self.task_vectors())
        exploring, drawn = self._exploration.draw(action.shape[1])
        return np.where(exploring[:, None], drawn, action)

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """The reward joins the sum with the next observation of its trial, if there is one."""
        scaled = reward / np.float32(self._trained.normalizer.reward_scale)
        self._reward = np.zeros_like(scaled) if self._setting.ablation == "blind" else scaled
        self._pending = ~done

    def task_vectors(self) -> Float32[np.ndarray, "envs d"]:
        """z of every environment."""
        earlier = self._earlier
        if self._setting.ablation == "truncated":
            earlier = np.zeros_like(earlier)
        elif self._setting.ablation == "foreign":
            earlier = np.roll(earlier, -1, axis=0)
        z = earlier + self._present
        for env in np.flatnonzero(~z.any(axis=1)).tolist():
            key = (self._setting.seed, self._setting.first + env, int(self._trial[env]))
            z[env] = np.random.default_rng(key).standard_normal(z.shape[1])
        norm = np.linalg.norm(z, axis=1, keepdims=True)
        return (z * (np.sqrt(z.shape[1]) / norm)).astype(np.float32)

    def forget(self, which: Bool[np.ndarray, " envs"]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        self._earlier[which], self._present[which], self._pending[which] = 0.0, 0.0, False
        self._exploration.forget(which)
        if which.all():
            self.demonstrations, self._begun = 0, False

    retire = forget

    @property
    def explored(self) -> int:
        """See `ringrl.policy.ContextPolicy`."""
        return self._exploration.trials

    def room(self) -> Bool[np.ndarray, " envs"]:
        """Always."""
        return np.ones(len(self._trial), bool)

    def state(self) -> dict[str, np.ndarray]:
        """See `ringrl.policy.ContextPolicy`."""
        flags = {"begun": np.array(self._begun), "demonstrations": np.array(self.demonstrations)}
        return {name: getattr(self, f"_{name}").copy() for name in _STATE} | flags | self._exploration.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `ringrl.policy.ContextPolicy`."""
        for name in _STATE:
            setattr(self, f"_{name}", state[name].copy())
        self._begun, self.demonstrations = bool(state["begun"]), int(state["demonstrations"])
        self._exploration.restore(state)


def _earned(fields: StepFields) -> Int64[np.ndarray, " paid"]:
    """The steps of a row that were paid, and after which the same trial goes on."""
    goes_on = fields["trial"][1:] == fields["trial"][:-1]
    return np.flatnonzero(goes_on & (fields["reward"][:-1] != 0))
