"""`ringrl evaluate`: a run's checkpoint in its own task, beside references in the same environments."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ringrl.agent import RolloutSpec, find_learner, load_agent
from ringrl.config import EvaluationConfig, RunConfig, change_section
from ringrl.envs import HELD_OUT, VectorEnv, is_hidden, make_env, make_vector, split_task
from ringrl.errors import UserError
from ringrl.model.transformer import Transformer
from ringrl.returns import TrialReturn
from ringrl.rollout import Ablation
from ringrl.rollout.ablation import check_ablation
from ringrl.rollout.policy import ExpertPolicy, Policy, RandomPolicy, SequencePolicy
from ringrl.rollout.transition_policy import LearnerPolicy, load_learner
from ringrl.rollout.trials import run_trials
from ringrl.rollout.video import record
from ringrl.run import ABLATION, RETURNS, TARGETS, RunDirectory
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.mesh import make_mesh
from ringrl.training.state import abstract_state, merge_model

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

    `checkpoint` is `latest`, `best` (the lowest training loss of those that are kept), or the number of a step.
    `trials` trials in each of `envs` environments, all in one context where the agent's file says so, of at most
    `context` tokens. `target` is the return asked for (agents that are told one). With `reference`, the uniform random
    policy is rolled out in environments of the same seeds, under the agent name `random`, and where the task knows an
    expert, so is that, as `expert`. With `video`, the first environment's trials are filmed, in a rollout of their own.
    Both files, returns.csv and evaluation.json, are replaced whole at the end.

    Raises UserError where the run or a setting is wrong; for a seed below `HELD_OUT` of a hidden task; and for a given
    target or context of an agent that has none.

    Example:
        >>> import ringrl
        >>> table = ringrl.evaluate("runs/cartpole", trials=1, envs=2, reference=False)
        >>> print(table.read_text().splitlines()[0])
        agent,task,seed,env,trial,return,length,target_return
    """
    began, run = time.perf_counter(), Path(run)
    given = {"trials": trials, "envs": envs, "context": context, "target": target, "seed": seed}
    trained = _load(run, checkpoint, given)
    policies: dict[str, MakePolicy] = {trained.run.label(): trained.policy}
    if reference:
        policies |= _references(trained.config.data.task, trained.setting)
    results: list[TrialReturn] = []
    with _progress() as progress:
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
    """The agent's evaluation once more for each of `targets`, and with its context ablated by each of `ablations`.

    Writes evaluation/targets.csv for all targets, evaluation/ablation-NAME.csv for each ablation, with the agent's rows
    alone, and a JSON of that name beside each, as evaluation.json; returns the tables' paths. For the ablations see
    `ringrl.rollout.ablation`. `given` are `evaluate`'s trials, envs, context, target and seed; None: the run's own.

    Raises UserError as `evaluate`; for targets of an agent without return conditioning; and where an ablation would
    change nothing (`check_ablation`).
    """
    trained = _load(run, checkpoint, given)
    label, acting = trained.run.label(), trained.acting
    if targets and acting.target is None:
        raise UserError(f"--targets: {label} is told no return, so there is none to vary; leave it out")
    told = [change_section(trained.setting, {"target": target}, "--targets").target for target in targets]
    for ablation in ablations:
        check_ablation(ablation, label, acting, trained.setting, trained.trial_steps())
    tables = []
    with _progress() as progress:
        if targets:
            began, results = time.perf_counter(), []
            for target in dict.fromkeys(told):
                asked = replace(trained, acting=replace(acting, target=target))
                results += asked.roll_out(label, asked.policy, progress, f"told {target:g}")
            about = {"target": None, "targets": told}
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
    card: dict
    setting: EvaluationConfig
    acting: RolloutSpec
    model: Transformer | LearnerPolicy
    step: int  # optimiser steps that it was trained for

    def policy(self, envs: VectorEnv, ablation: Ablation | None = None) -> Policy:
        """It, as it acts in these environments."""
        if isinstance(self.model, LearnerPolicy):
            return self.model
        return SequencePolicy(
            self.model,
            self.run.normalizer(),
            self.acting,
            envs=envs.num_envs,
            episode_steps=_decisions(envs),
            trials=self.setting.trials,
            sizes=self.card["sizes"],
            seed=self.setting.seed,
            ablation=ablation,
        )

    def trial_steps(self) -> int:
        """Decisions in the longest trial of its task."""
        data = self.config.data
        one = make_vector(data.task, 1, seed=self.setting.seed, action_repeat=data.action_repeat)
        steps = _decisions(one)
        one.close()
        return steps

    def roll_out(self, name: str, policy: MakePolicy, progress: Progress, how: str = "") -> list[TrialReturn]:
        """One agent's trials, in its rows called `name`; `policy` makes it, given the environments."""
        data, setting = self.config.data, self.setting
        vector = make_vector(data.task, setting.envs, seed=setting.seed, action_repeat=data.action_repeat)
        about = f"{', '.join(filter(None, (name, how)))}: {setting.trials} trials x {setting.envs} environments"
        bar = progress.add_task(about, total=setting.trials * _decisions(vector))
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
        facts = {"seconds": round(time.perf_counter() - began, 2), "checkpoint_step": self.step}
        facts |= {"agent": self.run.label()} | dict(more or {})
        return self.run.write_table(table, results, self.setting.model_dump() | facts)


def _load(path: Path, checkpoint: str, given: Mapping[str, int | float | None]) -> _Trained:
    """The run's agent; of `given`, what is not None changes the run's own setting."""
    run = RunDirectory(path)
    config, card = run.config(), run.dataset()
    known = {name: value for name, value in given.items() if value is not None}
    setting = change_section(config.evaluation, known, "ringrl evaluate")
    acting = _acting(config, run.label(), card, setting, known)
    _check_task(path, config.data.task, card["sizes"])
    if is_hidden(config.data.task) and setting.seed < HELD_OUT:
        raise UserError(
            f"{path}: evaluation.seed={setting.seed} is of {config.data.task}'s training tasks; train with "
            f"evaluation.seed={HELD_OUT}, or evaluate with --seed {HELD_OUT}"
        )
    learner = find_learner(config.agent.name)
    load = partial(load_learner, learner) if learner else load_model
    model, step = load(path, config, card, checkpoint)
    return _Trained(run, config, card, setting, acting, model, step)


def _progress() -> Progress:
    return Progress(console=Console(stderr=True))


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


def _decisions(envs: VectorEnv) -> int:
    """Decisions in the longest episode."""
    return -(-envs.time_limit_steps // envs.get_attr("action_repeat")[0])


def load_model(run: Path, config: RunConfig, card: dict, checkpoint: str = "latest") -> tuple[Transformer, int]:
    """A checkpoint's model on one device, and the optimiser steps it was trained for. Errors as `Checkpoints`."""
    single = config.model_copy(update={"mesh": type(config.mesh)()})
    graph, abstract = abstract_state(single, load_agent(config.agent.name), card["sizes"], make_mesh(single.mesh))
    with Checkpoints(run, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(abstract, checkpoint)
    return merge_model(graph, state.params), int(state.step)


def _acting(
    config: RunConfig, label: str, card: dict, setting: EvaluationConfig, given: Mapping[str, object]
) -> RolloutSpec:
    """How the agent's file says to roll it out, with what the user asked for instead; `given` for this evaluation."""
    if find_learner(config.agent.name):
        if "context" in given:
            raise UserError(f"--context: {label} sees one observation at a time; leave it out")
        acting, agent = RolloutSpec(context_steps=1, across_trials=False), None
    else:
        agent = load_agent(config.agent.name)
        acting = agent.acting(config.agent, config.training.row_steps, np.asarray(card["returns"]))
    if "target" in given and acting.target is None:
        raise UserError(f"--target: {label} is told no return, so there is none to ask for; leave it out")
    if setting.target is not None and acting.target is not None:
        acting = replace(acting, target=setting.target)
    if setting.context is None or agent is None:
        return acting
    tokens_per_step = agent.tokens(config.agent).tokens_per_step
    if setting.context < tokens_per_step:
        raise UserError(
            f"--context {setting.context}: a step of this agent takes {tokens_per_step} tokens; give at least that"
        )
    return replace(acting, context_steps=setting.context // tokens_per_step)
