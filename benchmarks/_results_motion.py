"""Walker and cheetah from RND data, canonical tasks held out, as data (docs/results.md)."""

from benchmarks._results_jobs import COLLECT, DATA, DOMAINS, RUNS, Data, Job

# The canonical tasks: members of the families, held out with what is near them.
TASKS = {
    "cheetah": ("cheetah_run", "cheetah_run_backward", "cheetah_flip", "cheetah_flip_backward"),
    "walker": ("walker_stand", "walker_walk", "walker_run", "walker_flip"),
}
_NUMBERS = {"cheetah": "0 1 2 4 8 16 32 128", "walker": "0 1 2 4 8 16 32"}
_ROOM = {"cheetah": 12900, "walker": 8250}  # tokens: the most trajectories, one token a step, and a trial of its own
# The walker's canonical tasks pay alike, and its trials have 250 steps.
_TEACHER = {
    "cheetah": {},
    "walker": {"data.scale_members": False, "agent.gamma": 0.98},
}
_STUDENT = {"cheetah": {}, "walker": {"agent.trajectories": 4, "agent.fewest": 4, "training.row_steps": 12_000}}
_ALIKE = {"evaluation.trials": 1, "evaluation.envs": 32}
_ALONE = "--seed 2000 --envs 32 --trials 1 --no-reference"


def _episodes(name: str) -> tuple[tuple[Data, ...], tuple[Data, ...]]:
    """Row 2's RND data of a domain, and 300 episodes of another collector, which contexts of evaluations are of."""
    domain, made = DOMAINS[name], []
    for files, store, more in (("rnd", "speed", ""), ("rnd_test", "speed_test", " --episodes 300 --seed 2")):
        folder, out = DATA / name / files, DATA / f"{name}_{store}.store"
        collect = f"collect --task {domain.collected} --action-repeat {domain.action_repeat} {COLLECT}{more}"
        build = f"build_store {folder} --tasks {' '.join(TASKS[name])} --families {name}_speed"
        made.append((Data(folder, collect), Data(out, build)))
    return made[0], made[1]


def _jobs(name: str) -> tuple[Job, ...]:
    """Every agent of a domain."""
    data = _episodes(name)
    train, test = (chain[-1].out for chain in data)
    where = {"data.store": train, "data.action_repeat": DOMAINS[name].action_repeat}
    shown = f"{_ALONE} --demonstrations {test} --trajectories {_NUMBERS[name]} --apart"
    teacher, student, fb = (f"motion_{name}_{agent}" for agent in ("teacher", "dpt", "fb"))
    seen, hidden = ({"data.task": f"{kind}_{name}_speed"} for kind in ("visible", "hidden"))
    return (
        *(Job(f"motion_{task}_td3", "results_td3", data, where | {"data.task": task} | _ALIKE) for task in TASKS[name]),
        Job(
            teacher,
            "motion_teacher",
            data,
            where | seen | _TEACHER[name],
            evaluations=("", *(f"--task {task} {_ALONE}" for task in TASKS[name])),
        ),
        Job(
            student,
            "motion_dpt",
            data,
            where | hidden | _STUDENT[name] | {"agent.teacher": f"{RUNS}/{teacher}-seed{{seed}}"},
            evaluations=tuple(
                f"--task {task} {how} --context {_ROOM[name]}" for task in TASKS[name] for how in (_ALONE, shown)
            ),
            after=(teacher,),
        ),
        Job(
            fb,
            "motion_fb",
            data,
            where | {"data.task": TASKS[name][0]},
            evaluations=tuple(f"--task {task} {how}" for task in TASKS[name] for how in (_ALONE, shown)),
            seeds=1,  # it does not learn here
        ),
    )


ROWS = {f"motion_{name}": _jobs(name) for name in TASKS}
