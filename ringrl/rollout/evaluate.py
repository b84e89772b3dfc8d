"""`ringrl evaluate`: a run's checkpoint in its own task, beside references in the same environments."""

import csv
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ringrl.agent import Acting, find_learner, load_agent
from ringrl.config import EvaluationConfig, RunConfig, change_section, load_config
from ringrl.envs import VectorEnv, make, make_vector, split_task
from ringrl.episode import COLUMNS, TrialReturn
from ringrl.errors import UserError
from ringrl.experience.normalizer import Normalizer
from ringrl.files import write_text
from ringrl.model.transformer import Transformer
from ringrl.rollout.learner import LearnerPolicy, load_learner
from ringrl.rollout.policy import ExpertPolicy, Policy, RandomPolicy, SequencePolicy
from ringrl.rollout.trials import run_trials
from ringrl.rollout.video import record
from ringrl.training.checkpoint import Checkpoints
from ringrl.training.mesh import make_mesh
from ringrl.training.state import abstract_state, merge_model

MakePolicy = Callable[[VectorEnv], Policy]


def evaluate(
    run: Path,
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
    """
    began = time.perf_counter()
    config, card = read_run(run)
    given = {"trials": trials, "envs": envs, "context": context, "target": target, "seed": seed}
    known = {name: value for name, value in given.items() if value is not None}
    setting = change_section(config.evaluation, known, "ringrl evaluate")
    acting = _acting(config, card, setting)
    _check_task(run, config.data.task, card["sizes"])
    learner = find_learner(config.agent.name)
    load = partial(load_learner, learner) if learner else load_model
    model, step = load(run, config, card, checkpoint)
    policies: dict[str, MakePolicy] = {
        agent_label(config): lambda vector: _trained(run, acting, card, model, setting, vector)
    }
    if reference:
        policies |= _references(config.data.task, setting)
    results: list[TrialReturn] = []
    with Progress(console=Console(stderr=True)) as progress:
        for name, policy in policies.items():
            results += _roll_out(config, setting, name, policy, progress)
    folder = run / "evaluation"
    folder.mkdir(exist_ok=True)
    seconds = round(time.perf_counter() - began, 2)
    about = setting.model_dump() | {"seconds": seconds, "checkpoint_step": step, "agent": agent_label(config)}
    write_text(folder / "evaluation.json", json.dumps(about, indent=1) + "\n")
    write_returns(folder / "returns.csv", results)
    if video is not None:
        film = {"seed": setting.seed, "action_repeat": config.data.action_repeat}
        record(video, policies[agent_label(config)], config.data.task, setting.trials, **film)
    return folder / "returns.csv"


def _check_task(run: Path, task: str, sizes: dict[str, int]) -> None:
    """Data can be of anything; only what there is an environment of, of the data's widths, can be rolled out."""
    try:
        split_task(task)
    except UserError as error:
        raise UserError(
            f"{run}: there is no environment {task!r} to evaluate in; the run can only be resumed and exported"
        ) from error
    env = make(task)
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
    env = make(task)
    width, knows = math.prod(env.action_space.shape or ()), ExpertPolicy.knows(env)
    env.close()
    chance: dict[str, MakePolicy] = {"random": lambda _: RandomPolicy(setting.envs, width, setting.seed)}
    return chance | {"expert": ExpertPolicy} if knows else chance


def _roll_out(
    config: RunConfig, setting: EvaluationConfig, name: str, policy: MakePolicy, progress: Progress
) -> list[TrialReturn]:
    """One agent's trials; `policy` makes it, given the environments."""
    data = config.data
    vector = make_vector(data.task, setting.envs, seed=setting.seed, action_repeat=data.action_repeat)
    decisions = setting.trials * _decisions(vector)
    about = f"{name}: {setting.trials} trials x {setting.envs} environments"
    bar = progress.add_task(about, total=decisions)
    try:
        return run_trials(
            policy(vector),
            vector,
            setting.trials,
            agent=name,
            task=data.task,
            seed=config.seed,
            action_repeat=data.action_repeat,
            on_step=lambda _: progress.advance(bar),
        )
    finally:
        vector.close()


def _decisions(envs: VectorEnv) -> int:
    """Decisions in the longest episode."""
    return -(-envs.time_limit_steps // envs.get_attr("action_repeat")[0])


def agent_label(config: RunConfig) -> str:
    """What tables call a run's agent: its label or, without one, its file's name without folder and ending."""
    return config.label or Path(config.agent.name).stem


def load_model(run: Path, config: RunConfig, card: dict, checkpoint: str = "latest") -> tuple[Transformer, int]:
    """A checkpoint's model on one device, and the optimiser steps it was trained for. Errors as `Checkpoints`."""
    single = config.model_copy(update={"mesh": type(config.mesh)()})
    graph, abstract = abstract_state(single, load_agent(config.agent.name), card["sizes"], make_mesh(single.mesh))
    with Checkpoints(run, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(abstract, checkpoint)
    return merge_model(graph, state.params), int(state.step)


def write_returns(path: Path, results: list[TrialReturn]) -> None:
    """returns.csv, complete or not at all; the target is left empty where there is none."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for r in results:
        told = "" if np.isnan(r.target_return) else repr(r.target_return)
        writer.writerow([r.agent, r.task, r.seed, r.env, r.trial, repr(r.return_), r.length, told])
    write_text(path, text.getvalue())


def read_run(run: Path) -> tuple[RunConfig, dict]:
    """A run's configuration, and its dataset.json. Raises UserError where there is no run."""
    for name in ("config.yaml", "dataset.json"):
        if not (run / name).exists():
            raise UserError(f"{run}: not a run directory (it has no {name}); pass the folder that `ringrl train` made")
    return load_config(run / "config.yaml"), json.loads((run / "dataset.json").read_text())


def _acting(config: RunConfig, card: dict, setting: EvaluationConfig) -> Acting:
    """How the agent's file says to roll it out, with what the user asked for instead."""
    if find_learner(config.agent.name):
        return Acting(context_steps=1, across_trials=False)
    agent = load_agent(config.agent.name)
    acting = agent.acting(config.agent, config.training.row_steps, np.asarray(card["returns"]))
    if setting.target is not None and acting.target is not None:
        acting = replace(acting, target=setting.target)
    if setting.context is None:
        return acting
    tokens_per_step = agent.tokens(config.agent).tokens_per_step
    if setting.context < tokens_per_step:
        raise UserError(
            f"--context {setting.context}: a step of this agent takes {tokens_per_step} tokens; give at least that"
        )
    return replace(acting, context_steps=setting.context // tokens_per_step)


def _trained(
    run: Path,
    acting: Acting,
    card: dict,
    model: Transformer | LearnerPolicy,
    setting: EvaluationConfig,
    envs: VectorEnv,
) -> Policy:
    """The trained agent."""
    if isinstance(model, LearnerPolicy):
        return model
    return SequencePolicy(
        model,
        Normalizer.load(run / "normalizer.json"),
        acting,
        envs=envs.num_envs,
        episode_steps=_decisions(envs),
        trials=setting.trials,
        sizes=card["sizes"],
        seed=setting.seed,
    )
