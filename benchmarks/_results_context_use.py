"""How row 0's student uses its context, as data: ablations and other trainings; its own trials (docs/results.md)."""

from collections.abc import Mapping
from dataclasses import replace

from benchmarks._results_jobs import RUNS, Data, Job
from benchmarks._results_relabelled import STUDENT, TEST, TRAIN, episodes

_HALF = episodes("point_mass_half", 1000, 1)  # the first half of the training's trajectories
_HELD_OUT = "--no-reference --seed 2000000 --context 12900"
_SHOWN = f"{_HELD_OUT} --envs 64 --demonstrations {TEST[-1].out} --order random"
_NUMBERS = "--trajectories 0 8 64"

ABLATED = replace(
    STUDENT,
    name="ablated_dpt",
    copies=STUDENT.name,
    after=(STUDENT.name,),
    evaluations=(
        f"{_HELD_OUT} --envs 64",
        f"{_SHOWN} {_NUMBERS}",
        f"{_SHOWN} {_NUMBERS} --ablation blind foreign shuffled unpaid paid truncated",
    ),
)
OWN = replace(
    ABLATED,
    name="own_trials_dpt",
    evaluations=(
        f"{_HELD_OUT} --envs 16 --trials 66 --explore 64",
        f"{_HELD_OUT} --envs 16 --trials 40 --explore 0 8 16 32",
    ),
)


def _variant(name: str, label: str, overrides: Mapping[str, object], data: tuple[Data, ...] = TRAIN) -> Job:
    """Another training, at a third of row 0's tokens, half of them a step; one seed."""
    short: dict[str, object] = {
        "training.steps": 600,
        "training.row_steps": 6400,
        "training.checkpoint_every": 200,
        "label": label,
    }
    return Job(
        f"ablation_{name}",
        "relabelled_dpt",
        (data, TEST),
        {"agent.teacher": f"{RUNS}/relabelled_teacher-seed{{seed}}", "data.store": data[-1].out, **short, **overrides},
        evaluations=(f"{_HELD_OUT} --envs 64", f"{_SHOWN} --trajectories 0 2 8 32 128"),
        after=("relabelled_teacher",),
        seeds=1,
    )


def _contexts(trajectories: int) -> Job:
    many = {"agent.trajectories": trajectories, "agent.fewest": trajectories}
    return _variant(f"context{trajectories}", f"contexts of {trajectories}", many)


ROWS = {
    "ablations": (
        ABLATED,
        *map(_contexts, (2, 8, 32)),
        _variant("half", "half the data", {}, _HALF),
        _variant("rotary", "rotary positions", {"model.position_encoding": "rotary"}),
        _variant("climber", "climber", {"agent.name": "in_context_td3"}),
    ),
    "own_trials": (OWN,),
}
