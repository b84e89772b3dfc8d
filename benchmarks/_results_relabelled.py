"""Hidden goals made by relabelling, as data: return against trajectories in the context (docs/results.md)."""

from benchmarks._results_jobs import DATA, RUNS, Data, Job

NAME = "point_mass_goal_30mm"
NUMBERS = "0 1 2 4 8 16 32 64 128"
_COLLECT = "collect --task point_mass_easy --policy random --action-repeat 4 --time-limit 400"
_STORE = f"--tasks point_mass_easy --families {NAME}"


def episodes(files: str, episodes: int, seed: int) -> tuple[Data, ...]:
    """Reward-free data of the point mass, and their store."""
    folder, store = DATA / files, DATA / f"{files}.store"
    collect = f"{_COLLECT} --episodes {episodes} --seed {seed}"
    return Data(folder, collect), Data(store, f"build_store {folder} {_STORE}")


TRAIN, TEST = episodes("point_mass", 2000, 1), episodes("point_mass_test", 1000, 2)
_SHOWN = f"--demonstrations {TEST[-1].out} --trajectories {NUMBERS} --order random"
_ROOM = "--context 12900"  # 128 trajectories of 100 steps, of a token each, and a trial of its own
_HIDDEN = f"--task hidden_{NAME} --seed 3000000 --trials 1 --envs 128"

TEACHER = Job(
    "relabelled_teacher",
    "relabelled_teacher",
    (TRAIN, TEST),
    evaluations=("", _HIDDEN, f"{_HIDDEN} {_SHOWN}"),
)
STUDENT = Job(
    "relabelled_dpt",
    "relabelled_dpt",
    (TRAIN, TEST),
    {"agent.teacher": f"{RUNS}/relabelled_teacher-seed{{seed}}"},
    evaluations=(f"--no-reference {_ROOM}", f"{_SHOWN} {_ROOM}"),
    after=("relabelled_teacher",),
)
# It acts every 8 environment steps, the others every 4: the head of its config says why.
FB = Job("relabelled_fb", "relabelled_fb", (TRAIN, TEST), evaluations=("--no-reference", _SHOWN))

ROWS = {"small": (TEACHER, STUDENT), "relabelled": (TEACHER, STUDENT, FB)}
