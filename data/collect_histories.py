"""AD-eps histories of many hidden tasks: an oracle's actions under noise that fades from trial to trial, as a store.

    ringrl data collect_histories --task hidden_point_mass_goal --action-repeat 10 --out datasets/goal.store

A history is `--trials` episodes of one hidden task, in order; the noise's share eps falls from 1 in the first linearly
to 0 (Zisman et al. 2023, section 3.1). With `--mix blend` an action is (1 - eps) expert + eps noise, the noise an
autoregressive process, which explores further than independent draws do; the action's distribution then has one mode,
as the Gaussian head's has. With `--mix coin`, the paper's way, every action is with probability eps a uniform draw,
else the expert's. For histories of real learners run `ringrl data collect --policy td3`, a seed a task.

With `--demonstrator` the store also has what the oracle would have done before every step, from which
`decision_pretrained` learns.

Every history becomes a source of the store, so that no chain crosses from one task into another. Tasks are those of
the seeds from `--seed` on, all below the held-out ones (`ringrl.envs.custom.hidden`); the seed determines everything.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from joblib import Parallel, cpu_count, delayed

from ringrl import envs
from ringrl.collect.noisy_expert import Noise, noisy_history
from ringrl.envs import HELD_OUT
from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.progress import tracked
from ringrl.store.episode_store import DataSource, build, open_store


@dataclass(frozen=True)
class Args:
    """Collect AD-eps histories of a family of hidden tasks."""

    out: Path
    """The store to make."""
    task: str = "hidden_point_mass_goal"
    """A family of hidden tasks that has an expert."""
    histories: int = 2000
    """Hidden tasks, a history of each."""
    trials: int = 8
    """Episodes in a history."""
    action_repeat: int = 10
    """Environment steps per agent step."""
    anneal: float = 0.8
    """Share of the trials over which eps falls from 1 to 0; the others are the expert's own."""
    mix: Literal["blend", "coin"] = "blend"
    """How noise and expert share an action; see above."""
    correlation: float = 0.8
    """Of the blended noise from one agent step to the next."""
    scale: float = 1.0
    """Standard deviation of the blended noise; less for strong actuators."""
    demonstrator: bool = False
    """Keep what the expert would have done before every environment step, too."""
    seed: int = 0
    """Of the first history's task; history i is of seed + i."""
    jobs: int = 0
    """Processes; 0: one for each core."""
    overwrite: bool = False
    """Replace a store of that name."""


def main(args: Args) -> None:
    """Collect the histories and build the store; see the module.

    Raises:
        UserError: in one line, for a task without an expert or settings out of range. No store is left then.
    """
    _check(args)
    noise, jobs = Noise(args.anneal, args.mix, args.correlation, args.scale), args.jobs or cpu_count()
    parallel = Parallel(n_jobs=jobs, return_as="generator")
    histories = parallel(
        delayed(noisy_history)(args.task, seed, args.trials, args.action_repeat, noise, demonstrator=args.demonstrator)
        for seed in range(args.seed, args.seed + args.histories)
    )
    no_settings = ("out", "demonstrator", "jobs", "overwrite")
    settings = {name: value for name, value in asdict(args).items() if name not in no_settings}
    build(
        args.out,
        _numbered(tracked(histories, "collecting histories", args.histories)),
        domain=envs.split_task(args.task)[0],
        tasks=(args.task,),
        sources=[
            DataSource(f"seed {args.seed + i}", f"{args.seed + i}", "ad_eps", args.task) for i in range(args.histories)
        ],
        provenance={"relabel": "recorded", "histories": settings},
        overwrite=args.overwrite,
    )
    by_trial = open_store(args.out).returns(args.task).reshape(args.histories, args.trials).mean(axis=0)
    print(f"{args.out}: {args.histories} histories; mean return by trial: {', '.join(f'{r:.1f}' for r in by_trial)}")


def _check(args: Args) -> None:
    if min(args.histories, args.trials) < 1:
        raise UserError(f"--histories {args.histories}, --trials {args.trials}: give whole numbers, 1 or more")
    if not (0 < args.anneal <= 1 and 0 <= args.correlation < 1 and args.scale > 0):
        raise UserError("--anneal must be in (0, 1], --correlation in [0, 1), --scale above 0")
    if not 0 <= args.seed <= HELD_OUT - args.histories:
        raise UserError(
            f"seeds {args.seed} to {args.seed + args.histories - 1}: training tasks are 0 to {HELD_OUT - 1}"
        )
    if not hasattr(envs.make_env(args.task).task, "expert"):
        raise UserError(f"{args.task} has no expert to add noise to; collect learners' histories: --policy td3")


def _numbered(histories: Any) -> Iterator[tuple[Episode, int]]:
    for index, episodes in enumerate(histories):
        for episode in episodes:
            yield episode, index


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
