"""What rollouts ask of a trained agent: how it acts, in what, and the interface of who acts."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32

from ringrl.choices import Ablation, WhenFull
from ringrl.sampling.normalizer import Normalizer

StepFields = Mapping[str, np.ndarray]
"""Fields of `ringrl.batch.Batch` by name."""

UNBOUNDED = sys.maxsize
"""`RolloutSpec.context_steps` of an agent whose context may be of any length."""


@dataclass(frozen=True)
class RolloutSpec:
    """How a trained agent is rolled out: its context, its return conditioning, its actions.

    With R the target return and r_i the rewards of a trial, the return-to-go at its step t is R_t = R - sum_{i < t} r_i
    (Chen et al. 2021, section 3), or R at every step.

    Attributes:
        context_steps: agent steps in the longest context that training has shown the agent, or `UNBOUNDED`.
        target: R; None: the agent is not conditioned on a return.
        subtract_rewards: whether R_t is R less the rewards so far; False: R at every step, as of a mean reward over a
            horizon (`ringrl.batch.ContextPlan`).
        sample: whether actions are drawn from the output head's distribution, instead of taking its mode.
    """

    context_steps: int
    target: float | None = None
    subtract_rewards: bool = True
    sample: bool = False


@dataclass(frozen=True)
class RolloutSetting:
    """In what an agent is rolled out, and for how long.

    Attributes:
        environments: how many act at once, as one batch.
        trial_steps: agent steps in the longest trial.
        trials: trials to come; with `trial_steps` it bounds the context's memory.
        seed: of the drawn actions, and of what an ablation draws.
        first: index of the first environment; what environment `first + i` draws depends on that number and the seed.
        when_full: what is kept of a full context, see `ringrl.rollout.full_context`.
        ablation: how the trials before the present one are ablated, see `ringrl.rollout.ablation`; None: not.
        explore: the first so many trials act at random, see `ringrl.rollout.exploration`.
        explore_correlation: of their actions, from one agent step to the next.
    """

    environments: int
    trial_steps: int
    trials: int
    seed: int = 0
    first: int = 0
    when_full: WhenFull = "newest"
    ablation: Ablation | None = None
    explore: int = 0
    explore_correlation: float = 0.0


@runtime_checkable
class Policy(Protocol):
    """What `run_trials` needs of who acts. `envs` is the batch of environments."""

    @property
    def target(self) -> float | None:
        """The target return at the start of every trial, if any."""
        ...

    def begin_trial(self, which: Bool[np.ndarray, " envs"]) -> None:
        """These environments were reset."""
        ...

    def act(self, observation: Float32[np.ndarray, "envs observation"]) -> Float32[np.ndarray, "envs action"]:
        """An action in [-1, 1] for every environment."""
        ...

    def observe(self, reward: Float32[np.ndarray, " envs"], done: Bool[np.ndarray, " envs"]) -> None:
        """The reward of the action, and whether the trial ended with it."""
        ...

    def room(self) -> Bool[np.ndarray, "*envs"]:
        """Whether another trial may begin in each environment, or in all: not where a full context is to stop."""
        ...


@runtime_checkable
class ContextPolicy(Policy, Protocol):
    """A policy with a context, which can begin with demonstrations, and be saved between two steps."""

    def demonstrate(self, steps: StepFields | Sequence[StepFields]) -> None:
        """Begin the context with trajectories, before the first step.

        Args:
            steps: fields of `ringrl.batch.Batch`, [steps, ...], trials numbered from 0, positions counted, segment 1:
                those of all environments, or of each.

        Raises UserError where they do not fit the agent or its context.
        """
        ...

    @property
    def demonstrations(self) -> int:
        """Trajectories with which the context began."""
        ...

    @property
    def explored(self) -> int:
        """Trials at the beginning that act at random."""
        ...

    @property
    def dropped(self) -> Sequence[Any]:
        """What full contexts lost: `ringrl.rollout.full_context.Dropped`."""
        ...

    def forget(self, which: Bool[np.ndarray, " envs"]) -> None:
        """Empty the contexts of these environments."""
        ...

    def retire(self, which: Bool[np.ndarray, " envs"]) -> None:
        """As `forget`, of environments whose actions nobody reads from now on."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, as arrays by name."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the policy that `state` was made of."""
        ...


@runtime_checkable
class TrainedPolicy(Protocol):
    """A checkpoint's policy, before it is in an environment."""

    @property
    def step(self) -> int:
        """Gradient steps that it was trained for."""
        ...

    @property
    def normalizer(self) -> Normalizer:
        """The run's scales."""
        ...

    def start(self, spec: RolloutSpec, setting: RolloutSetting) -> Policy:
        """A policy for so many environments and trials, with an empty context; `spec` is how it is rolled out."""
        ...
