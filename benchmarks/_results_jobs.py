"""The trainings and evaluations behind docs/results.md, as data: what each is trained on, and how it is evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATA, RUNS = Path("datasets/results"), Path("runs/results")


@dataclass(frozen=True)
class Data:
    """A step that makes `out`."""

    out: Path
    command: str  # of `ringrl data`, without --out


@dataclass(frozen=True)
class Job:
    """A training, in a run directory for each seed, and its evaluations."""

    name: str
    config: str
    data: tuple[tuple[Data, ...], ...]  # what it needs: chains of steps, each in the order of making
    overrides: Mapping[str, object] = field(
        default_factory=dict
    )  # of the config; RUNS of other jobs in them have {seed}
    # Options of `ringrl evaluate`, once for each. That random and expert are rolled out once a seed is enough.
    evaluations: tuple[str, ...] = ("",)
    after: tuple[str, ...] = ()  # names of the jobs whose runs it needs
    copies: str | None = None  # the job whose run of the same seed is evaluated once more, in a copy; None: it trains
    seeds: int | None = None  # training seeds at most

    def run(self, seed: int) -> Path:
        """The run directory."""
        return RUNS / f"{self.name}-seed{seed}"

    def changes(self, seed: int) -> dict[str, object]:
        """The overrides of a seed."""
        return {
            key: value.format(seed=seed) if isinstance(value, str) else value for key, value in self.overrides.items()
        }


# Of each family of hidden tasks, the action repeat, the scale of the noise, and the training steps.
FAMILIES = {
    "goal": ("hidden_point_mass_goal", 10, 1.0, 6000),
    "target": ("hidden_reacher_target", 5, 0.3, 3000),
}
ABLATED = ("", "--ablation truncated shuffled foreign blind")


def _histories(family: str, trials: int) -> Data:
    task, repeat, scale, _ = FAMILIES[family]
    command = f"collect_histories --task {task} --action-repeat {repeat} --scale {scale} --trials {trials}"
    return Data(DATA / f"{family}{trials}.store", command)


def _hidden(family: str) -> tuple[Job, ...]:
    task, repeat, _, steps = FAMILIES[family]
    data = _histories(family, 8)
    where = {"data.store": data.out, "data.task": task, "data.action_repeat": repeat}
    return (
        Job(f"{family}_ad", "results_ad", ((data,),), where | {"training.steps": steps}, evaluations=ABLATED),
        Job(f"{family}_bc", "results_hidden_bc", ((data,),), where),
    )


def _conditioned(family: str) -> tuple[Job, ...]:
    """The agents with return conditioning, with and without earlier trials."""
    data, targets = ((_histories(family, 8),),), "--targets 40 70 104 125"
    return (
        Job(f"{family}_at", "results_hidden_at", data, evaluations=(*ABLATED, targets)),
        Job(f"{family}_dt", "results_hidden_dt", data, evaluations=("", targets)),
    )


def _context(trials: int) -> Job:
    values = {"agent.trajectories": trials, "model.max_trials": trials, "training.row_steps": 25 * trials}
    label = f"AD, {trials} trial{'s' if trials > 1 else ''} in context"
    data = ((_histories("target", 16),),)
    return Job(f"context_{trials}", "results_context", data, values | {"training.batch": 128 // trials, "label": label})


@dataclass(frozen=True)
class Domain:
    """RND data of a domain of ExoRL, and what is learned from them."""

    collected: str  # the task under which the collector ran, whose reward it does not see
    tasks: tuple[str, ...]
    action_repeat: int  # environment steps an agent step, for about ten agent steps a second
    trial_steps: int  # agent steps in a trial


DOMAINS = {
    "walker": Domain("walker_walk", ("walker_stand", "walker_run", "walker_walk"), 4, 250),
    "cheetah": Domain("cheetah_run", ("cheetah_run",), 10, 100),
    "jaco": Domain("jaco_reach_top_left", ("jaco_reach_top_left",), 2, 125),
    "cartpole": Domain("cartpole_swingup", ("cartpole_swingup",), 10, 100),
}
# A million steps (of jaco 250,000), which is what ExoRL's loader keeps of a collector, at its collectors' step size.
COLLECT = "--policy rnd --episodes 1000 --learner.actor-lr 1e-4 --learner.critic-lr 1e-4 --learner.rnd-lr 1e-4"
SWEPT = {
    "cheetah_run": ("--targets 40 80 130 200",)
}  # its data's median is 42, their best tenth earn 83, their best 131


def _exorl(name: str, domain: Domain) -> tuple[Job, ...]:
    """A training step reads about 2,000 agent steps, in the Agentic Transformer's rows of 8 trajectories."""
    files, store, trajectories = DATA / name / "rnd", DATA / f"{name}.store", 8
    collect = f"collect --task {domain.collected} --action-repeat {domain.action_repeat} {COLLECT}"
    made = (Data(files, collect), Data(store, f"build_store {files} --tasks {' '.join(domain.tasks)}"))
    steps, row = {"model.max_steps": domain.trial_steps}, trajectories * domain.trial_steps
    rows = {"training.row_steps": row, "training.batch": max(2000 // row, 1)}
    jobs, data = [], (made,)
    for task in domain.tasks:
        where = {"data.store": store, "data.task": task, "data.action_repeat": domain.action_repeat}
        targets = SWEPT.get(task, ())
        alone, ablated = ("--no-reference",), "--ablation truncated"
        jobs.append(Job(f"{task}_bc10", "results_bc10", data, where | steps))
        jobs.append(Job(f"{task}_dt", "results_dt", data, where | steps, evaluations=(*alone, *targets)))
        evaluations = (*alone, ablated, *targets)
        jobs.append(Job(f"{task}_at", "results_at", data, where | steps | rows, evaluations=evaluations))
        jobs.append(Job(f"{task}_td3", "results_td3", data, where, evaluations=alone))
    return tuple(jobs)


ROWS = {
    "hidden_goal": _hidden("goal"),
    "hidden_target": (*_hidden("target"), *_conditioned("target")),
    "exorl": tuple(job for each in DOMAINS.items() for job in _exorl(*each)),
    "context": tuple(_context(trials) for trials in (1, 2, 4, 8, 16)),
}
