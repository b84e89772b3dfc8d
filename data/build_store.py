"""Episode files -> one episode store with rewards of every task: what training reads.

    ringrl data build_store walker/rnd walker/proto.zip --out stores/walker --jobs 4

Every folder or zip archive is one source, in the order given; a learner's history is the episodes of one source, in
their order. Rewards are computed anew from the physics states (`--relabel exact`), or taken from the files
(`--relabel recorded`), as those of Gymnasium's environments, which follow from no state. Archives are read as they are,
without unpacking.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ringrl.envs import is_gymnasium, split_task
from ringrl.envs.custom import FAMILIES
from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.formats.description import Description, describe_folder
from ringrl.formats.exorl import read_folder
from ringrl.progress import tracked
from ringrl.relabelling.features import FeatureReader
from ringrl.relabelling.rewards import examine, relabelable_tasks
from ringrl.relabelling.workers import Backend, Workers, relabel_files
from ringrl.store.episode_store import build, open_store
from ringrl.store.store_summary import summary


@dataclass(frozen=True)
class Args:
    """Build an episode store from folders of ExoRL's episode files."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of episode files, or the ones above that contain buffer/, or .zip archives. Each becomes one source."""
    out: Path
    """The store to make."""
    domain: str | None = None
    """The domain, where neither collect.json nor the path DOMAIN/ALGORITHM/buffer tells it."""
    tasks: tuple[str, ...] = ()
    """Task ids, such as walker_run. Default: all of the domain that the files allow; if recorded, those recorded."""
    families: tuple[str, ...] = ()
    """Families of rewards whose features are kept, such as point_mass_goal_10mm: agents of these learn from them."""
    relabel: Literal["exact", "exorl", "recorded"] | None = None
    """exact, the default: as dm_control pays. exorl: ExoRL's own number, which leaves out the action. recorded: as in
    the files, the default for Gymnasium's environments."""
    jobs: int = 0
    """Processes that read and relabel; 0: one for each core, or fewer for few files."""
    backend: Backend = "loky"
    """loky: processes of this machine. dask, ray: of a cluster."""
    address: str | None = None
    """Of the Dask scheduler or Ray cluster; default: one started on this machine."""
    skip_bad: bool = False
    """Move bad and foreign files to quarantine/ and go on, instead of stopping at the first."""
    clip: bool = False
    """Clip actions to [-1, 1], however far they are beyond, as the environment does too."""
    overwrite: bool = False
    """Replace a store of that name."""


def main(args: Args) -> None:
    """Build the store.

    Raises:
        UserError: in one line, for anything wrong with the folders, the files or the tasks. No store is left then.
    """
    if not args.folders:
        raise UserError("no folder of episodes given")
    descriptions = [describe_folder(folder, args.domain) for folder in args.folders]
    readers = [read_folder(folder, skip_bad=args.skip_bad, clip=args.clip) for folder in args.folders]
    _check_alike(args.folders, descriptions, [reader.dims for reader in readers])
    if args.relabel is None:
        args = replace(args, relabel="recorded" if is_gymnasium(descriptions[0].domain) else "exact")
    if args.relabel != "recorded" and not readers[0].dims.physics:
        raise UserError(
            f"{args.folders[0]}: its files have no physics states, of which rewards are computed; take those in the "
            "files with --relabel recorded, and name their tasks with --tasks"
        )
    tasks = args.tasks or _tasks(args, descriptions, readers[0].dims)
    if args.relabel == "recorded":
        episodes = [_recorded(tasks, *each) for each in zip(args.folders, descriptions, readers, strict=True)]
    else:
        _check_domain(tasks, args.folders[0], descriptions[0].domain)
        episodes = [_relabelled(args, tasks, reader) for reader in readers]
    build(
        args.out,
        tracked(_numbered(episodes), "building the store", sum(len(reader) for reader in readers)),
        domain=descriptions[0].domain,
        tasks=tasks,
        sources=[description.source for description in descriptions],
        provenance={"relabel": args.relabel} | ({"clip": True} if args.clip else {}),
        features=_features(args.families, descriptions[0].domain),
        overwrite=args.overwrite,
    )
    skipped = sum(reader.skipped for reader in readers)
    left_out = f"; {skipped} bad files skipped" if skipped else ""
    print(summary(open_store(args.out), f"{len(descriptions)} source(s){left_out}"))


def _check_alike(folders: tuple[Path, ...], descriptions: list[Description], dims: list[Dims]) -> None:
    for folder, description, widths in zip(folders, descriptions, dims, strict=True):
        if description.domain != descriptions[0].domain:
            raise UserError(
                f"{folder} is of {description.domain}, {folders[0]} of {descriptions[0].domain}: a store has one domain"
            )
        if widths._replace(reward=0) != dims[0]._replace(reward=0):
            raise UserError(f"{folder} has widths {widths}, {folders[0]} {dims[0]}: they do not fit into one store")


def _tasks(args: Args, descriptions: list[Description], dims: Dims) -> tuple[str, ...]:
    """What is taken where no task is named; never without the tasks whose rewards the files hold."""
    if args.relabel not in ("exact", "exorl"):
        return descriptions[0].tasks or ()
    for task in dict.fromkeys(task for each in descriptions for task in each.tasks or ()):
        misfit = examine(task, args.relabel).misfit(dims.physics, dims.observation)
        if misfit is not None:
            raise UserError(
                f"rewards of {task} cannot be recomputed ({misfit}); use --relabel recorded, or name tasks with --tasks"
            )
    return relabelable_tasks(descriptions[0].domain, dims.physics, args.relabel, observation_width=dims.observation)


def _check_domain(tasks: tuple[str, ...], folder: Path, domain: str) -> None:
    for task in tasks:
        if split_task(task)[0] != domain:
            raise UserError(f"{folder} is of {domain}, the tasks are of {split_task(task)[0]}")


def _relabelled(args: Args, tasks: tuple[str, ...], reader: read_folder) -> Iterator[Episode]:
    assert args.relabel in ("exact", "exorl")
    workers = Workers(args.jobs, args.backend, args.address)
    skip = reader.skip if args.skip_bad else None
    files = relabel_files(
        reader.files, tasks, args.relabel, dims=reader.dims, clip=args.clip, workers=workers, on_damaged=skip
    )
    return (episode for _, episode in files)


def _recorded(tasks: tuple[str, ...], folder: Path, description: Description, reader: read_folder) -> Iterator[Episode]:
    """The episodes with those columns of the files that hold the rewards of `tasks`."""
    names = description.tasks or tasks
    if not names:
        raise UserError(f"{folder}: nothing tells which task its rewards are of; name it with --tasks")
    if len(names) != reader.dims.reward:
        raise UserError(f"{folder}: the files have {reader.dims.reward} reward columns, not one for each of {names}")
    missing = [task for task in tasks if task not in names]
    if missing:
        raise UserError(f"{folder}: no recorded rewards of {', '.join(missing)}; it has {', '.join(names)}")
    columns = [names.index(task) for task in tasks]
    return (replace(episode, reward=episode.reward[:, columns]) for _, episode in reader)


def _features(names: tuple[str, ...], domain: str) -> dict[str, FeatureReader]:
    known = {name: family for name, family in FAMILIES.items() if family.domain == domain}
    unknown = [name for name in names if name not in known]
    if unknown:
        has = f"those of {domain} are {', '.join(known)}" if known else f"there are none of {domain}"
        raise UserError(f"--families {unknown[0]}: no such family of rewards; {has}")
    return {name: FeatureReader(known[name]) for name in names}


def _numbered(sources: list[Iterator[Episode]]) -> Iterator[tuple[Episode, int]]:
    """Every episode with the index of its source."""
    for index, episodes in enumerate(sources):
        for episode in episodes:
            yield episode, index


if __name__ == "__main__":
    main(tyro.cli(Args))
