"""Libraries of hidden goals, as data: M goals, and a cue that says which a trial is of (docs/results.md)."""

from benchmarks._results_jobs import RUNS, Job
from benchmarks._results_relabelled import NAME, TEST, TRAIN

SEED = 2_000_000  # of the environments: goals that no training drew, and that nothing was chosen on
GIVEN = {
    1: (0, 1, 2, 4, 8, 16),
    2: (2, 4, 8, 16, 32),
    4: (4, 8, 16, 32, 64),
    8: (8, 16, 32, 64),
    16: (16, 32, 64),
}
"""Members of a library -> how many trajectories a context begins with: 1, 2, 4 ... a member."""
OWN = {1: (16, 48), 2: (32, 24), 4: (64, 16), 8: (64, 8), 16: (64, 8)}
"""Members of a library -> trials of its own, and environments."""


def task(members: int) -> str:
    """The task of so many goals."""
    return f"library{members}_{NAME}"


def _given(members: int, numbers: tuple[int, ...]) -> str:
    shown = f"--demonstrations {TEST[-1].out} --order random --trajectories {' '.join(map(str, numbers))}"
    room = 100 * (max(numbers) + 1)
    return f"--task {task(members)} --seed {SEED} --envs 64 --trials 1 --context {room} {shown}"


def _own(members: int, trials: int, envs: int) -> str:
    alone = f"--task {task(members)} --no-reference --seed {SEED}"
    return f"{alone} --envs {envs} --trials {trials} --context {100 * trials}"


STUDENT = Job(
    "library_dpt",
    "library_dpt",
    (TRAIN, TEST),
    {"agent.teacher": f"{RUNS}/relabelled_teacher-seed{{seed}}"},
    evaluations=(
        *(_given(members, numbers) for members, numbers in GIVEN.items()),
        f"{_given(4, (64,))} --ablation foreign",
        *(_own(members, *much) for members, much in OWN.items()),
    ),
    after=("relabelled_teacher",),
)

ROWS = {"library": (STUDENT,)}
