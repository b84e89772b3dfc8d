"""`ringrl evaluate`: a run's checkpoint in its own task, beside references in the same environments."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from ringrl.agent import Agent, AgentDescription, Policy, RolloutSpec, TrainedPolicy, make_agent
from ringrl.config import Ablation, EvaluationConfig, RunConfig, change_section
from ringrl.envs import HELD_OUT, VectorEnv, is_hidden, make_env, make_vector, split_task
from ringrl.errors import UserError
from ringrl.progress import progress_bar
from ringrl.returns import TrialReturn
from ringrl.rollout.ablation import check_ablation
from ringrl.rollout.policy import ExpertPolicy, RandomPolicy
from ringrl.rollout.spec import under_setting
from ringrl.rollout.trials import run_trials
from ringrl.rollout.video import record
from ringrl.run import ABLATION, RETURNS, TARGETS, RunDirectory

MakePolicy = Callable[[VectorEnv], Policy]


def evaluate(
    run: Path | str,
    *,
    trials: int | None = None,
    envs: int | None = None,
    context: int | None = None,
    target: float | None = None,
    seed: int | None = None,
    reference: bool = True,
    video: Path | None = None,
    checkpoint: str = "latest",
) -> Path:
    """Roll a checkpoint of the run out; None takes the run's own setting. Returns the path of returns.csv.

    `checkpoint` is `latest`, `best` (the lowest training loss of those kept), or the number of a step.
    `trials` trials in each of `envs` environments, all in one context where the agent's spans trials, of at most
    `context` tokens. `target` is the target return, of agents that are conditioned on one. With `reference`, the
    uniform random policy is rolled out in environments of the same seeds, under the agent name `random`, and where the
    task knows an expert, so is that, as `expert`. With `video`, the first environment's trials are filmed, in a rollout
    of their own. Both files, returns.csv and evaluation.json, are replaced whole at the end.

    Raises UserError where the run or a setting is wrong; for a seed below `HELD_OUT` of a hidden task; and for a given
    target or context of an agent that has none.

    Example:
        >>> import ringrl
        >>> table = ringrl.evaluate("runs/cartpole", trials=1, envs=2, reference=False)
        >>> print(table.read_text().splitlines()[0])
        agent,task,seed,env,trial,return,length,target_return,demonstrations
    """
    began, run = time.perf_counter(), Path(run)
    given = {"trials": trials, "envs": envs, "context": context, "target": target, "seed": seed}
    trained = _load(run, checkpoint, given)
    policies: dict[str, MakePolicy] = {trained.run.label(): trained.policy}
    if reference:
        policies |= _references(trained.config.data.task, trained.setting)
    results: list[TrialReturn] = []
    with progress_bar() as progress:
        for name, policy in policies.items():
            results += trained.roll_out(name, policy, progress)
    returns = trained.write(RETURNS, results, began)
    if video is not None:
        film = {"seed": trained.setting.seed, "action_repeat": trained.config.data.action_repeat}
        record(video, trained.policy, trained.config.data.task, trained.setting.trials, **film)
    return returns


def repeat(
    run: Path,
    targets: Sequence[float] = (),
    ablations: Sequence[Ablation] = (),
    *,
    checkpoint: str = "latest",
    **given: int | float | None,
) -> list[Path]:
    """The agent's evaluation once more for each of `targets`, and with each of the context `ablations`.

    Writes evaluation/targets.csv for all targets, evaluation/ablation-NAME.csv for each ablation, with the agent's rows
    alone, and a JSON of that name beside each, as evaluation.json; returns the tables' paths. The ablations are those
    of `ringrl.rollout.ablation`. `given` are `evaluate`'s trials, envs, context, target and seed; None: the run's own.

    Raises UserError as `evaluate`; for targets of an agent that is not conditioned on one; for ablations of one whose
    context is the present trial alone; and for trials or a context too few to contain what an ablation would change.
    """
    trained = _load(run, checkpoint, given)
    label, spec = trained.run.label(), trained.spec
    if targets and spec.target is None:
        raise UserError(f"--targets: {label} is not conditioned on a return, so there is none to vary; leave it out")
    asked = [change_section(trained.setting, {"target": target}, "--targets").target for target in targets]
    for ablation in ablations:
        across, steps = trained.description.across_trials, trained.trial_steps()
        check_ablation(ablation, label, spec, trained.setting, steps, across_trials=across)
    tables = []
    with progress_bar() as progress:
        if targets:
            began, results = time.perf_counter(), []
            for target in dict.fromkeys(asked):
                one = replace(trained, spec=replace(spec, target=target))
                results += one.roll_out(label, one.policy, progress, f"target {target:g}")
            about = {"target": None, "targets": asked}
            tables.append(trained.write(TARGETS, results, began, about))
        for ablation in dict.fromkeys(ablations):
            began = time.perf_counter()
            results = trained.roll_out(label, partial(trained.policy, ablation=ablation), progress, ablation)
            about = {"ablation": ablation}
            tables.append(trained.write(f"{ABLATION}{ablation}", results, began, about))
    return tables


@dataclass(frozen=True)
class _Trained:
    """A run's agent, and under which setting it is rolled out."""

    run: RunDirectory
    config: RunConfig
    setting: EvaluationConfig
    description: AgentDescription
    spec: RolloutSpec
    trained: TrainedPolicy

    def policy(self, envs: VectorEnv, ablation: Ablation | None = None) -> Policy:
        """The agent in these environments."""
        setting = self.setting
        options = {"trials": setting.trials, "seed": setting.seed, "ablation": ablation}
        return self.trained.start(envs.num_envs, envs.agent_steps, self.spec, **options)

    def trial_steps(self) -> int:
        """Agent steps in the longest trial of its task."""
        data = self.config.data
        one = make_vector(data.task, 1, seed=self.setting.seed, action_repeat=data.action_repeat)
        steps = one.agent_steps
        one.close()
        return steps

    def roll_out(self, name: str, policy: MakePolicy, progress: Progress, how: str = "") -> list[TrialReturn]:
        """One agent's trials, in its rows called `name`; `policy` makes it, given the environments."""
        data, setting = self.config.data, self.setting
        vector = make_vector(data.task, setting.envs, seed=setting.seed, action_repeat=data.action_repeat)
        about = f"{', '.join(filter(None, (name, how)))}: {setting.trials} trials x {setting.envs} environments"
        bar = progress.add_task(about, total=setting.trials * vector.agent_steps)
        try:
            return run_trials(
                policy(vector),
                vector,
                setting.trials,
                agent=name,
                task=data.task,
                seed=self.config.seed,
                action_repeat=data.action_repeat,
                on_step=lambda _: progress.advance(bar),
            )
        finally:
            vector.close()

    def write(
        self, table: str, results: list[TrialReturn], began: float, more: Mapping[str, object] | None = None
    ) -> Path:
        """A table of the run's evaluation/, and beside it a JSON of the settings; returns the table's path."""
        facts = {"seconds": round(time.perf_counter() - began, 2), "checkpoint_step": self.trained.step}
        facts |= {"agent": self.run.label()} | dict(more or {})
        return self.run.write_table(table, results, self.setting.model_dump() | facts)


def _load(path: Path, checkpoint: str, given: Mapping[str, int | float | None]) -> _Trained:
    """The run's agent; of `given`, what is not None changes the run's own setting."""
    run = RunDirectory(path)
    config, dataset, label = run.config(), run.dataset(), run.label()
    known = {name: value for name, value in given.items() if value is not None}
    setting = change_section(config.evaluation, known, "ringrl evaluate")
    agent = make_agent(config.agent)
    if agent.policy is None:
        raise UserError(f"{path}: {label} has no policy, so it cannot be rolled out; it can be resumed and exported")
    spec = agent.policy.rollout_spec(config.training.row_steps, np.asarray(dataset["returns"], np.float64))
    _refuse_unused(spec, agent, label, known)
    spec = under_setting(spec, setting, agent)
    _check_task(path, config.data.task, dataset["sizes"])
    if is_hidden(config.data.task) and setting.seed < HELD_OUT:
        raise UserError(
            f"{path}: evaluation.seed={setting.seed} is of {config.data.task}'s training tasks; train with "
            f"evaluation.seed={HELD_OUT}, or evaluate with --seed {HELD_OUT}"
        )
    policy = agent.policy.load_policy(path, config, dataset["sizes"], checkpoint)
    return _Trained(run, config, setting, agent.description, spec, policy)


def _check_task(run: Path, task: str, sizes: dict[str, int]) -> None:
    """Data can be of anything; only what there is an environment of, of the data's widths, can be rolled out."""
    try:
        split_task(task)
    except UserError as error:
        raise UserError(
            f"{run}: there is no environment {task!r} to evaluate in; the run can only be resumed and exported"
        ) from error
    env = make_env(task)
    spaces = {"observation": env.observation_space, "action": env.action_space}
    widths = {name: math.prod(space.shape or ()) for name, space in spaces.items()}
    env.close()
    wrong = [name for name, width in widths.items() if width != sizes[name]]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{run}: {task}'s {name} has {widths[name]} numbers, the data's has {sizes[name]}: they are of an "
            "environment with other settings, in which it cannot be evaluated here"
        )


def _references(task: str, setting: EvaluationConfig) -> dict[str, MakePolicy]:
    """By name, who acts in the same environments for comparison: `random` and, where the task has one, `expert`."""
    env = make_env(task)
    width, knows = math.prod(env.action_space.shape or ()), ExpertPolicy.knows(env)
    env.close()
    chance: dict[str, MakePolicy] = {"random": lambda _: RandomPolicy(setting.envs, width, setting.seed)}
    return chance | {"expert": ExpertPolicy} if knows else chance


def _refuse_unused(spec: RolloutSpec, agent: Agent, label: str, given: Mapping[str, object]) -> None:
    """Raise UserError where the command line gives what the agent does not have; a config may be of several agents."""
    if "context" in given and agent.decoder is None:
        raise UserError(f"--context: {label} sees one observation at a time; leave it out")
    if "target" in given and spec.target is None:
        raise UserError(f"--target: {label} is not conditioned on a return, so there is no target; leave it out")
