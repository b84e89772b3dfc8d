"""Vintix data sets -> one episode store: learners' histories, which Algorithm Distillation learns from.

    ringrl data import_vintix VintixDataset/mujoco/hopper_v4 --out stores/hopper_histories
    ringrl data import_vintix ml/reach-v2 ml/push-v2 --task metaworld --out stores/metaworld

Every .h5 file is the history of one learner and becomes one source, in its order, so that no context crosses from one
history into another. The store's task is the one that the data name, such as Hopper-v4; several tasks whose
observations and actions are alike go into one store under a name of your choice. Needs `pip install 'ringrl[vintix]'`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import tyro

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.imported import Bounds, common_task, domain_of, known_bounds, unit_bounds
from ringrl.formats.vintix import VintixData, action_width, count_episodes, open_vintix, read_history
from ringrl.progress import tracked
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.store.store_summary import summary


@dataclass(frozen=True)
class Args:
    """Build an episode store from Vintix's histories."""

    datasets: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of .h5 files, or single files. Every file becomes one source."""
    out: Path
    """The store to make."""
    task: str | None = None
    """The task whose rewards these are; default the data sets' environment, such as Hopper-v4."""
    low: tuple[float, ...] = ()
    """The actions that become -1, one number for all or one for each. Default: those of the task's environment, where
    it is known here, else -1."""
    high: tuple[float, ...] = ()
    """Likewise, those that become 1."""
    clip: bool = False
    """Clip actions to their bounds, however far they are beyond, as the environment does too."""
    overwrite: bool = False
    """Replace a store of that name."""


def main(args: Args) -> None:
    """Build the store.

    Raises:
        UserError: in one line, for anything wrong with the data sets. No store is left then.
    """
    if not args.datasets:
        raise UserError("no data set given: name a folder of Vintix's .h5 files")
    datasets = [open_vintix(path) for path in args.datasets]
    task = args.task or common_task([(data.name, data.task) for data in datasets])
    histories = [(data, path) for data in datasets for path in data.histories]
    width = action_width(histories[0][1])
    bounds = known_bounds(task, width, args.low, args.high) or unit_bounds(width)
    total = sum(count_episodes(path) for _, path in histories)
    build(
        args.out,
        tracked(_episodes([path for _, path in histories], bounds, args.clip), "building the store", total),
        domain=domain_of(task),
        tasks=(task,),
        sources=[_source(data, path, bounds) for data, path in histories],
        provenance={"relabel": "recorded", "h5py": version("h5py")} | ({"clip": True} if args.clip else {}),
        overwrite=args.overwrite,
    )
    print(summary(open_store(args.out), f"{len(histories)} history file(s)"))
    print("  not recorded: whether an episode ended (the discount is 1), what follows its last action (repeated)")


def _source(data: VintixData, path: Path, bounds: Bounds) -> DataSource:
    about = {"format": "vintix", "action_bounds": [bound.tolist() for bound in bounds]}
    return DataSource(f"{data.name}/{path.stem}", path.name, None, data.task, about)


def _episodes(histories: list[Path], bounds: Bounds, clip: bool) -> Iterator[tuple[Episode, int]]:
    for source, history in enumerate(histories):
        for episode in read_history(history, bounds, clip=clip):
            yield episode, source


if __name__ == "__main__":
    main(tyro.cli(Args))
