"""Minari data sets -> one episode store: other people's offline data, such as mujoco/hopper/expert-v0.

    ringrl data import_minari mujoco/hopper/medium-v0 mujoco/hopper/expert-v0 --out stores/hopper

A data set is the id of one that `minari download` has fetched, or a folder. Each becomes one source, in the order
given. The store's task is the environment that the data are of, such as Hopper-v5, in which `ringrl evaluate` rolls a
trained agent out. Needs `pip install 'ringrl[minari]'`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.imported import domain_of
from ringrl.formats.minari import (
    action_bounds,
    changed_settings,
    open_dataset,
    read_episodes,
    task_of,
)
from ringrl.progress import tracked
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.store.store_summary import summary


@dataclass(frozen=True)
class Args:
    """Build an episode store from Minari data sets."""

    datasets: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Ids of data sets that Minari has downloaded, or their folders. Each becomes one source."""
    out: Path
    """The store to make."""
    task: str | None = None
    """The task whose rewards these are; default the data sets' environment, such as Hopper-v5."""
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
        raise UserError("no data set given; `minari list local` shows those that are here")
    datasets = [open_dataset(name) for name in args.datasets]
    task = args.task or _common_task(datasets)
    _check_alike(datasets)
    total = sum(dataset.total_episodes for dataset in datasets)
    build(
        args.out,
        tracked(_episodes(datasets, args.clip), "building the store", total),
        domain=domain_of(task),
        tasks=(task,),
        sources=[_source(dataset) for dataset in datasets],
        provenance=_provenance(args),
        overwrite=args.overwrite,
    )
    print(summary(open_store(args.out), f"{len(datasets)} data set(s)"))
    for dataset in datasets:
        if changed := changed_settings(dataset):
            print(f"  {dataset.id} was collected with {changed}: evaluation in {task} is without that")


def _provenance(args: Args) -> dict[str, Any]:
    versions = {name: version(name) for name in ("minari", "gymnasium")}
    return {"relabel": "recorded"} | versions | ({"clip": True} if args.clip else {})


def _common_task(datasets: list[Any]) -> str:
    tasks = [task_of(dataset) for dataset in datasets]
    if tasks[0] is None or set(tasks) != {tasks[0]}:
        found = ", ".join(f"{dataset.id} of {task or 'none'}" for dataset, task in zip(datasets, tasks, strict=True))
        raise UserError(f"the data sets do not tell one environment ({found}); name the task with --task")
    return tasks[0]


def _check_alike(datasets: list[Any]) -> None:
    bounds = [np.stack(action_bounds(dataset)) for dataset in datasets]
    for dataset, other in zip(datasets, bounds, strict=True):
        if not np.array_equal(other, bounds[0]):
            raise UserError(f"{dataset.id} has other bounds of actions than {datasets[0].id}: build two stores")


def _source(dataset: Any) -> DataSource:
    metadata = dataset.storage.metadata
    about = {name: metadata[name] for name in ("description", "code_permalink", "minari_version") if name in metadata}
    about["changed_settings"] = {name: repr(value) for name, value in changed_settings(dataset).items()}
    about["action_bounds"] = [bound.tolist() for bound in action_bounds(dataset)]
    folder = Path(dataset.storage.data_path).resolve().parent.name
    return DataSource(dataset.id, folder, metadata.get("algorithm_name"), task_of(dataset), about)


def _episodes(datasets: list[Any], clip: bool) -> Iterator[tuple[Episode, int]]:
    for source, dataset in enumerate(datasets):
        for episode in read_episodes(dataset, clip=clip):
            yield episode, source


if __name__ == "__main__":
    main(tyro.cli(Args))
