"""What a run learned, ready to act: `ringrl.load_agent`."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringrl.agent import Agent, AgentDescription, PolicySource, Widths, make_agent
from ringrl.choices import WhenFull
from ringrl.config import RunConfig, change_section
from ringrl.envs import make_vector, split_task
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.policy import RolloutSetting, RolloutSpec, TrainedPolicy
from ringrl.rollout.demonstrations import ContextForm
from ringrl.rollout.model_calls import ModelCalls
from ringrl.rollout.saved_session import read_session
from ringrl.rollout.sequence_policy import TrainedSequencePolicy
from ringrl.rollout.session import Session
from ringrl.rollout.spec import under_setting
from ringrl.run import RunDirectory
from ringrl.sampling.normalizer import Normalizer
from ringrl.training.export import is_export, load_export
from ringrl.training.mesh import rollout_mesh
from ringrl.trust import trusting


@dataclass(frozen=True, eq=False)
class TrainedAgent:
    """What a run learned, ready to act. Made by `load_agent`.

    Attributes:
        name: what tables call it.
        config: the configuration it was trained under; `in_task` changes its task.
        step: optimiser steps it was trained for.
        description: what a report says of it.
        sizes: widths of the observation and the action.
        spec: how it is rolled out unless another target is given.
        has_context: whether it keeps the steps of a context, as a sequence model does.
        form_of: in which form it is shown trajectories.
    """

    name: str
    config: RunConfig
    step: int
    description: AgentDescription
    sizes: Widths
    spec: RolloutSpec
    has_context: bool
    _policy: TrainedPolicy
    form_of: type[ContextForm] = ContextForm

    @property
    def target(self) -> float | None:
        """The return it is conditioned on unless another is given; None: it is not return-conditioned."""
        return self.spec.target

    def start(
        self,
        environments: int = 1,
        target: float | None = None,
        *,
        trials: int | None = None,
        trial_steps: int | None = None,
        seed: int = 0,
        when_full: WhenFull | None = None,
        explore: int | None = None,
        explore_correlation: float | None = None,
    ) -> Session:
        """Begin a rollout with an empty context.

        Args:
            environments: how many act at once, as one batch.
            target: the return to condition on at the start of every trial, of return-conditioned agents.
            trials: trials to come, which bounds the memory of the context. More may follow, from a context that is
                full then: `when_full` says what is kept of it. Default: the config's `evaluation.trials`.
            trial_steps: agent steps of the longest trial. Default: those of the run's task or, where it is of no
                environment known here, the config's `model.max_steps`.
            seed: of drawn actions, where the agent samples.
            when_full: what is kept of a full context (`ringrl.rollout.full_context`): `newest` or `best` whole trials,
                or `stop`. Default: the config's `evaluation.when_full`.
            explore: the first so many trials act at random (`ringrl.rollout.exploration`). Default: the config's.
            explore_correlation: of their actions, from one agent step to the next, in [0, 1). Default: likewise.

        Raises:
            UserError: a number out of range, a target for an agent that is not return-conditioned, or exploration for
                one whose context is the present trial alone.
        """
        evaluation = self.config.evaluation
        trials = evaluation.trials if trials is None else trials
        trial_steps = self.trial_steps() if trial_steps is None else trial_steps
        for name, value in {"environments": environments, "trials": trials, "trial_steps": trial_steps}.items():
            if value < 1:
                raise UserError(f"start: {name} is {value}; give 1 or more")
        if target is not None and self.target is None:
            raise UserError(f"start: {self.name} is not return-conditioned; leave out target")
        given = {"explore": explore, "explore_correlation": explore_correlation, "when_full": when_full}
        given = {name: value for name, value in given.items() if value is not None}
        found = change_section(evaluation, given, "start")
        if found.explore and not self.description.across_trials:
            raise UserError(f"start: {self.name} looks at the present trial alone; leave out explore")
        exploring = {"explore": found.explore, "explore_correlation": found.explore_correlation}
        setting = RolloutSetting(environments, trial_steps, trials, seed, when_full=found.when_full, **exploring)
        return self.session(setting, self.spec if target is None else replace(self.spec, target=float(target)))

    def session(self, setting: RolloutSetting, spec: RolloutSpec | None = None, *, batched: bool = False) -> Session:
        """A rollout under a setting; `batched`: arrays have a leading axis of environments also where there is one."""
        spec = spec or self.spec
        origin = {"agent": self._identity, "spec": asdict(spec), "setting": asdict(setting)}
        policy, size = self._policy.start(spec, setting), self.sizes["observation"]
        options = {"batched": batched, "origin": origin | {"batched": batched}, "form": self.form(spec)}
        return Session(policy, setting.environments, size, **options)

    def form(self, spec: RolloutSpec | None = None) -> ContextForm:
        """How it is shown trajectories, when it is rolled out as `spec` says."""
        return self.form_of(spec or self.spec, self._policy.normalizer, self.sizes, self.config.data.action_repeat)

    def in_task(self, task: str) -> "TrainedAgent":
        """The same agent, to be rolled out in another task of its observations and actions."""
        data = self.config.data.model_copy(update={"task": task})
        return replace(self, config=self.config.model_copy(update={"data": data}))

    def resume(self, path: str | os.PathLike[str]) -> Session:
        """Go on with a session that `session.save` wrote. Its context's keys and values are computed again.

        Raises:
            UserError: there is no such file, it is damaged, or of an agent of another kind.
        """
        origin, state = read_session(user_path(path))
        saved = origin["agent"]
        if saved != self._identity:
            raise UserError(
                f"{path}: a session of {_named(saved)}, not of {_named(self._identity)}, or trained on other data"
            )
        session = self.session(origin["setting"], origin["spec"], batched=origin["batched"])
        try:
            session.restore(state)
        except (IndexError, KeyError, TypeError, ValueError) as error:  # arrays that do not fit
            raise UserError(f"{path}: not a session of this agent ({error!r}); start a new one") from error
        return session

    @property
    def _identity(self) -> dict[str, Any]:
        """What decides which sessions it can go on with."""
        scales = hashlib.sha256()
        for value in vars(self._policy.normalizer).values():
            scales.update(np.asarray(value, np.float64).tobytes())
        about = {"name": self.name, "checkpoint_step": self.step, "sizes": dict(self.sizes)}
        return about | {"scales": scales.hexdigest()[:16]}

    def trial_steps(self) -> int:
        """Agent steps in the longest trial: of the run's task or, where no such environment is known, by config."""
        data = self.config.data
        try:
            split_task(data.task)
        except UserError:
            return self.config.model.max_steps
        envs = make_vector(data.task, 1, action_repeat=data.action_repeat)
        steps = envs.agent_steps
        envs.close()
        return steps


def load_agent(
    run: str | os.PathLike[str],
    checkpoint: str = "latest",
    *,
    mesh: Mapping[str, int] | None = None,
    cache_dtype: str | None = None,
    trust: bool = False,
) -> TrainedAgent:
    """A trained agent, to be rolled out in any environment of the observations and actions it was trained on.

    Args:
        run: a run directory, or a folder that `ringrl export` wrote.
        checkpoint: of a run directory: `latest`, `best` (the lowest loss of those kept), or a step's number.
        mesh: devices along mesh axes, such as `{"seq": 4}`, over which the context is spread; of several processes, all
            their devices. Default: the run's mesh where there are as many devices, else one device; of several
            processes the run's mesh alone, which must be of all their devices.
        cache_dtype: in which the context's keys and values are kept: `float32`, `bfloat16` or `int8`. Default: the
            config's `evaluation.cache_dtype`, or the model's compute dtype.
        trust: run the agent that the folder brings along, whoever wrote it; otherwise there is a question, or an error,
            where it is neither shipped nor known to this user (`ringrl.trust`).

    Raises:
        UserError: there is no run, no such checkpoint, a run that has no policy, such as a language model's, a mesh of
            more devices than there are, or an agent that is not trusted.

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
    given = {"mesh": mesh, "cache_dtype": cache_dtype}
    with trusting(trust):
        changed = {name: value for name, value in given.items() if value is not None}
        return load_trained(user_path(run), checkpoint, changed)


def load_trained(path: Path, checkpoint: str, evaluation: Mapping[str, Any]) -> TrainedAgent:
    """As `load_agent`; `evaluation` changes settings of that name in its configuration. Raises UserError as that."""
    directory = RunDirectory(path)
    if is_export(path) and not directory.exists:
        model, config, about = load_export(path)
        dataset, label = about["dataset"], config.label or Path(about["config"]["agent"]["name"]).stem
        config = _changed(config, evaluation)
        agent, source = agent_and_source(path, label, config)
        calls = ModelCalls(model, rollout_mesh(config), config.evaluation.cache_dtype)
        if "normalizer" not in about:
            raise UserError(f"{path}: its config.json has no `normalizer`; export the run again")
        normalizer, step = Normalizer.from_values(about["normalizer"]), about["step"]
        normalizer.require_width(dataset["sizes"].get("observation"), path)
        across = agent.description.across_trials
        trained: TrainedPolicy = TrainedSequencePolicy(calls, normalizer, dataset["sizes"], step, across)
    else:
        config, dataset, label = _changed(directory.config(), evaluation), directory.dataset(), directory.label()
        agent, source = agent_and_source(path, label, config)
        trained = source.load_policy(path, config, dataset["sizes"], checkpoint)
    spec = source.rollout_spec(config.training.row_steps, np.asarray(dataset["returns"], np.float64))
    spec = under_setting(spec, config.evaluation, agent)
    return TrainedAgent(
        label, config, trained.step, agent.description, dataset["sizes"], spec, agent.decoder is not None, trained
    )


def _changed(config: RunConfig, evaluation: Mapping[str, Any]) -> RunConfig:
    if not evaluation:
        return config
    return config.model_copy(
        update={"evaluation": change_section(config.evaluation, dict(evaluation), "ringrl evaluate")}
    )


def agent_and_source(path: Path, label: str, config: RunConfig) -> tuple[Agent, PolicySource]:
    """The agent, and how it acts. Raises UserError where it has no policy."""
    agent = make_agent(config.agent)
    if agent.policy is None:
        raise UserError(f"{path}: {label} has no policy, so it cannot be rolled out; it can be resumed and exported")
    return agent, agent.policy


def _named(identity: Mapping[str, Any]) -> str:
    return f"{identity['name']} at step {identity['checkpoint_step']} {identity['sizes']}"
