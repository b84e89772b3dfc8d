"""Hidden goals made by relabelling, as data: return against trajectories in the context (docs/results.md)."""

from benchmarks._results_jobs import DATA, Data

NAME = "point_mass_goal_10mm"
NUMBERS = "0 1 2 4 8 16 32 64 128"
_COLLECT = "collect --task point_mass_easy --policy correlated --action-repeat 10"
_STORE = f"--tasks point_mass_easy --families {NAME}"


def _episodes(name: str, episodes: int, seed: int) -> tuple[Data, ...]:
    """Reward-free data of the point mass, and their store."""
    files, store = DATA / f"point_mass_{name}", DATA / f"point_mass_{name}.store"
    collect = f"{_COLLECT} --episodes {episodes} --seed {seed}"
    return Data(files, collect), Data(store, f"build_store {files} {_STORE}")


TRAIN, TEST = _episodes("train", 2000, 1), _episodes("test", 1000, 2)
SHOWN = f"--demonstrations {TEST[-1].out} --trajectories {NUMBERS}"

ROWS = {"small": (), "relabelled": ()}
