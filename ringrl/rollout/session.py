"""A trained agent in an environment of the user's own: act, observe, and again, over many trials."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32

from ringrl.agent import Agent, Policy, PolicySource, RolloutSpec, TrainedPolicy, Widths, make_agent
from ringrl.config import RunConfig
from ringrl.envs import make_vector, split_task
from ringrl.errors import UserError
from ringrl.rollout.policy import TrainedSequencePolicy
from ringrl.rollout.spec import under_setting
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.training.export import is_export, load_export

# A number, or anything that NumPy makes an array of.
Numbers = np.ndarray | np.generic | jax.Array | Sequence[Any] | float | int


class Session:
    """One rollout of a trained agent: its context, in one environment or in several at once.

    Time index: `act` takes o_t and gives a_t; `observe` takes the reward r_t that a_t earned, and whether the trial
    ended with it. With `environments=1` all arrays are those of the one environment, without a leading axis.
    """

    def __init__(self, policy: Policy, environments: int, observation_size: int):
        """See `TrainedAgent.start`. The first trial begins at once."""
        self._policy, self._environments, self._observation_size = policy, environments, observation_size
        self._begun = np.zeros(environments, bool)  # whether an environment's trial has steps
        self._ended = np.zeros(environments, bool)
        self._acted = False
        policy.begin_trial(np.ones(environments, bool))

    def act(self, observation: Numbers) -> Float32[np.ndarray, "*environments action"]:
        """The action for an observation.

        Args:
            observation: [O] as the environment gives it, or [environments, O] of several; not normalised.

        Returns:
            float32 in [-1, 1]: [A], or [environments, A].

        Raises:
            UserError: another shape; a trial that has ended; or an action before it whose reward was not observed.
        """
        if self._acted:
            raise UserError("session.act: the last action's reward is missing; call session.observe first")
        if self._ended.all():
            raise UserError("session.act: the trial has ended; call session.new_trial() first")
        value = np.asarray(observation, np.float32)
        shape = (self._observation_size,) if self._environments == 1 else (self._environments, self._observation_size)
        if value.shape != shape:
            raise UserError(f"session.act: the observation has shape {value.shape}; give {shape}")
        self._acted = True
        action = self._policy.act(value.reshape(self._environments, -1))
        return action[0] if self._environments == 1 else action

    def observe(self, reward: Numbers, done: Numbers = False) -> None:
        """Add to the context what the last action earned.

        Args:
            reward: a number, or [environments]; with an action repeat, the sum over the environment steps.
            done: whether the trial ended with it, at its goal or at a time limit: one truth value, or [environments].

        Raises:
            UserError: another shape, or there was no action.
        """
        if not self._acted:
            raise UserError("session.observe: no action was taken; call session.act(observation) first")
        rewards, dones = self._each("reward", reward, np.float32), self._each("done", done, bool)
        self._acted = False
        self._policy.observe(rewards, dones)
        self._begun, self._ended = np.ones_like(self._begun), self._ended | dones

    def new_trial(self, which: Numbers = True) -> None:
        """Begin a trial: the environment was reset. Where the agent looks across trials, its context goes on.

        Where the present trial has no steps yet, nothing changes, so that a loop may call this before every trial.

        Args:
            which: of several environments, those that were reset: bool [environments]; all by default.

        Raises:
            UserError: another shape, or an action whose reward was not observed.
        """
        if self._acted:
            raise UserError("session.new_trial: the last action's reward is missing; call session.observe first")
        reset: Bool[np.ndarray, " environments"] = self._each("which", which, bool) & self._begun
        if reset.any():
            self._policy.begin_trial(reset)
        self._begun, self._ended = self._begun & ~reset, self._ended & ~reset

    def _each(self, name: str, value: Numbers, dtype: type) -> np.ndarray:
        given = np.asarray(value, dtype)
        if given.shape not in ((), (self._environments,)):
            raise UserError(f"session: {name} has shape {given.shape}; give one value, or ({self._environments},)")
        return np.broadcast_to(given, (self._environments,)).copy()


@dataclass(frozen=True, eq=False)
class TrainedAgent:
    """What a run learned, ready to act. Made by `load_agent`.

    Attributes:
        name: what tables call it.
        config: the configuration it was trained under.
        step: optimiser steps it was trained for.
        target: the return it is conditioned on unless another is given; None: it is not return-conditioned.
    """

    name: str
    config: RunConfig
    step: int
    _policy: TrainedPolicy
    _sizes: Widths
    _spec: RolloutSpec

    @property
    def target(self) -> float | None:
        """The default target return."""
        return self._spec.target

    def start(
        self,
        environments: int = 1,
        target: float | None = None,
        *,
        trials: int | None = None,
        trial_steps: int | None = None,
        seed: int = 0,
    ) -> Session:
        """Begin a rollout with an empty context.

        Args:
            environments: how many act at once, as one batch.
            target: the return to condition on at the start of every trial, of return-conditioned agents.
            trials: trials to come, which bounds the memory of the context; more may follow, from a context that is
                rebuilt from the newest. Default: the config's `evaluation.trials`.
            trial_steps: agent steps of the longest trial. Default: those of the run's task or, where it is of no
                environment known here, the config's `model.max_steps`.
            seed: of drawn actions, where the agent samples.

        Raises:
            UserError: a number out of range, or a target for an agent that is not return-conditioned.
        """
        trials = self.config.evaluation.trials if trials is None else trials
        trial_steps = self._trial_steps() if trial_steps is None else trial_steps
        for name, value in {"environments": environments, "trials": trials, "trial_steps": trial_steps}.items():
            if value < 1:
                raise UserError(f"start: {name} is {value}; give 1 or more")
        if target is not None and self.target is None:
            raise UserError(f"start: {self.name} is not return-conditioned; leave out target")
        spec = self._spec if target is None else replace(self._spec, target=float(target))
        policy = self._policy.start(environments, trial_steps, spec, trials=trials, seed=seed)
        return Session(policy, environments, self._sizes["observation"])

    def _trial_steps(self) -> int:
        data = self.config.data
        try:
            split_task(data.task)
        except UserError:
            return self.config.model.max_steps
        envs = make_vector(data.task, 1, action_repeat=data.action_repeat)
        steps = envs.agent_steps
        envs.close()
        return steps


def load_agent(run: str | os.PathLike[str], checkpoint: str = "latest") -> TrainedAgent:
    """A trained agent, to be rolled out in any environment of the observations and actions it was trained on.

    Args:
        run: a run directory, or a folder that `ringrl export` wrote.
        checkpoint: of a run directory: `latest`, `best` (the lowest training loss of those kept), or a step's number.

    Raises:
        UserError: there is no run, no such checkpoint, or a run that has no policy, such as a language model's.

    Example:
        >>> import ringrl
        >>> agent = ringrl.load_agent("runs/cartpole")
        >>> session = agent.start(target=80.0)
        >>> env = ringrl.make_env("cartpole_swingup", action_repeat=4)
        >>> for trial in range(2):
        ...     observation, _ = env.reset()
        ...     session.new_trial()
        ...     for _ in range(3):
        ...         action = session.act(observation)
        ...         observation, reward, terminated, truncated, _ = env.step(action)
        ...         session.observe(reward, terminated or truncated)
        >>> action.shape, bool(abs(action) <= 1)
        ((1,), True)
    """
    path = Path(run)
    directory = RunDirectory(path)
    if is_export(path) and not directory.exists:
        model, config, about = load_export(path)
        dataset, label = about["dataset"], config.label or Path(about["config"]["agent"]["name"]).stem
        normalizer = Normalizer.from_values(about["normalizer"])
        agent, source = _agent_and_source(path, label, config)
        across, step = agent.description.across_trials, int(about["step"])
        trained: TrainedPolicy = TrainedSequencePolicy(model, normalizer, dataset["sizes"], step, across)
    else:
        config, dataset, label = directory.config(), directory.dataset(), directory.label()
        agent, source = _agent_and_source(path, label, config)
        trained = source.load_policy(path, config, dataset["sizes"], checkpoint)
    spec = source.rollout_spec(config.training.row_steps, np.asarray(dataset["returns"], np.float64))
    spec = under_setting(spec, config.evaluation, agent)
    return TrainedAgent(label, config, trained.step, trained, dataset["sizes"], spec)


def _agent_and_source(path: Path, label: str, config: RunConfig) -> tuple[Agent, PolicySource]:
    agent = make_agent(config.agent)
    if agent.policy is None:
        raise UserError(f"{path}: {label} has no policy, so it cannot be rolled out")
    return agent, agent.policy
