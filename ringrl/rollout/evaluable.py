"""What cannot be evaluated, in one line: tasks without an environment, training tasks, options without a use."""

import math
from collections.abc import Mapping
from pathlib import Path

from ringrl.envs import HELD_OUT, VALIDATION, family_of, is_hidden, make_env, split_task
from ringrl.errors import UserError
from ringrl.rollout.trained_agent import TrainedAgent


def check_task(run: Path, task: str, sizes: dict[str, int]) -> None:
    """Data can be of anything; only what there is an environment of, of the data's widths, can be rolled out.

    Raises UserError where there is no such environment, or it has other widths than `sizes`.
    """
    try:
        split_task(task)
    except UserError as error:
        why = f" ({error})" if ":" in task else ""  # of a user's module
        raise UserError(
            f"{run}: there is no environment {task!r} to evaluate in{why}; the run can only be resumed and exported"
        ) from error
    for name, width in widths_of(task).items():
        if width != sizes[name]:
            raise UserError(
                f"{run}: {task}'s {name} has {width} numbers, the data's has {sizes[name]}: they are of an "
                "environment with other settings, in which it cannot be evaluated here"
            )


def check_other_task(run: Path, task: str, sizes: dict[str, int]) -> None:
    """Raise UserError where there is no environment `task`, or it has other widths than `sizes`, the agent's."""
    for name, width in widths_of(task).items():
        if width != sizes[name]:
            raise UserError(
                f"--task {task}: its {name} has {width} numbers, the agent of {run} was trained on {sizes[name]}; give "
                "a task of these widths"
            )


def check_seeds(run: Path, task: str, seed: int, environments: int) -> None:
    """Raise UserError where environments from `seed` on are of a hidden task's training, or of more than one split.

    Of a family of rewards seeds of validation may be evaluated too, to choose settings by: training draws its members
    by no environment's seed.
    """
    if not is_hidden(task):
        return
    family = family_of(task) is not None
    if seed < (VALIDATION if family else HELD_OUT):
        chosen = f", or --seed {VALIDATION} to choose settings by" if family else ""
        raise UserError(
            f"{run}: evaluation.seed={seed} is of {task}'s training tasks; train with "
            f"evaluation.seed={HELD_OUT}, or evaluate with --seed {HELD_OUT}{chosen}"
        )
    if seed < HELD_OUT < seed + environments:
        raise UserError(
            f"{run}: seeds {seed} to {seed + environments - 1} are of {task}'s validation and its held-out tasks; give "
            f"--seed {HELD_OUT}, or at most {HELD_OUT - environments}"
        )


def split_of(task: str, seed: int) -> dict[str, str]:
    """What a table's JSON says of the members that were evaluated, `split`; of tasks that hide nothing, nothing."""
    return {"split": "validation" if seed < HELD_OUT else "held_out"} if is_hidden(task) else {}


def widths_of(task: str) -> dict[str, int]:
    """Widths of a task's `observation` and `action`. Raises UserError where there is no such task."""
    env = make_env(task)
    spaces = {"observation": env.observation_space, "action": env.action_space}
    widths = {name: math.prod(space.shape or ()) for name, space in spaces.items()}
    env.close()
    return widths


def check_exploration(agent: TrainedAgent, *, retrieves: bool) -> None:
    """Raise UserError where the agent is to explore, and its own trials would teach it nothing, as those of retrieval.

    Or where no trial is left to act in.
    """
    setting = agent.config.evaluation
    if not setting.explore:
        return
    if retrieves or not agent.description.across_trials:
        why = "keeps nothing of its own trials" if retrieves else "looks at the present trial alone"
        raise UserError(f"evaluation.explore (--explore): {agent.name} {why}; leave it out")
    if setting.explore >= setting.trials:
        raise UserError(
            f"evaluation.explore (--explore) is {setting.explore} of {setting.trials} trials, so the agent never acts "
            f"itself; give --trials {setting.explore + 1} or more"
        )


def refuse_unused(agent: TrainedAgent, given: Mapping[str, object]) -> None:
    """Raise UserError where the command line gives what the agent does not have; a config may be of several agents."""
    unused = [name for name in ("context", "mesh", "cache_dtype", "when_full") if name in given]
    if unused and not agent.has_context:
        summed = agent.description.across_trials
        why = "keeps no steps of its context, of any length" if summed else "sees one observation at a time"
        raise UserError(f"--{unused[0].replace('_', '-')}: {agent.name} {why}; leave it out")
    if "target" in given and agent.target is None:
        raise UserError(f"--target: {agent.name} is not conditioned on a return, so there is no target; leave it out")
