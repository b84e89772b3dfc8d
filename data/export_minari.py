"""One task of an episode store -> a Minari data set, which any program that reads Minari's can load.

    ringrl data export_minari stores/walker --task walker_run --id walker/rnd-v0

It is written where Minari keeps its data sets (`MINARI_DATASETS_PATH`, else `~/.minari/datasets`). Data of Gymnasium's
environments carry their specification, so that `recover_environment()` works. Needs `pip install 'ringrl[minari]'`.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ringrl.errors import UserError
from ringrl.formats.minari import write_dataset
from ringrl.progress import tracked
from ringrl.store.episode_store import open_store


@dataclass(frozen=True)
class Args:
    """Write a Minari data set from an episode store."""

    store: Annotated[str, tyro.conf.Positional]
    """The store, a folder or a URL."""
    id: str
    """The name that the data set gets, such as walker/rnd-v0."""
    task: str | None = None
    """The task whose rewards are written; default the store's, where it has one."""
    episodes: tuple[int, ...] = ()
    """Which episodes, by their index in the store; default all."""
    overwrite: bool = False
    """Replace a data set of that name."""


def main(args: Args) -> None:
    """Write the data set.

    Raises:
        UserError: in one line, for anything wrong with the store, the task, the episodes or the name.
    """
    store = open_store(args.store, memory_limit=0)
    task = args.task or store.tasks[0]
    if args.task is None and len(store.tasks) > 1:
        raise UserError(f"{args.store} has rewards of {', '.join(store.tasks)}; choose one with --task")
    indices = args.episodes or range(store.episodes)
    missing = [index for index in indices if not 0 <= index < store.episodes]
    if missing:
        raise UserError(f"{args.store} has episodes 0 to {store.episodes - 1}, no {missing[0]}")
    sources = ", ".join(source.name for source in store.sources)
    description = f"{task}, from {sources}; written by ringrl {store.provenance.get('ringrl', '')}".rstrip()
    episodes = (store.episode(index, task) for index in tracked(indices, "writing the data set", len(indices)))
    folder = write_dataset(args.id, episodes, task, description=description, overwrite=args.overwrite)
    print(f"{folder}: {len(indices)} episodes of {task}, {store.lengths[list(indices)].sum()} steps")


if __name__ == "__main__":
    main(tyro.cli(Args))
