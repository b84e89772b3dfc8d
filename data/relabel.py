"""Episode files -> the same files with rewards of other tasks, one column a task.

    ringrl data relabel walker/rnd --tasks walker_stand walker_run --out relabelled/walker/rnd

The result is ExoRL's own layout again: the files are in OUT/buffer, under the same names, with `relabel.json` in OUT.
`build_store` relabels by itself, and ExoRL's own trainer computes rewards anew whenever it loads a file; this step is
for other programs that read ExoRL's files. The input is only read.

Files are done several at once (`--jobs`). A run that dies continues where it stopped if the same command is given
again; given on several machines that share a file system, the command divides the work among them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ringrl.relabelling.relabel_source import relabel
from ringrl.relabelling.relabelled_folder import SKIPPED
from ringrl.relabelling.rewards import Mode
from ringrl.relabelling.workers import Backend


@dataclass(frozen=True)
class Args:
    """Rewrite a folder of ExoRL's episode files with rewards of other tasks."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder of episode files, or the one above that contains buffer/; or a .zip of either."""
    out: Path
    """The folder to make; the files go to OUT/buffer."""
    domain: str | None = None
    """The domain, where neither collect.json nor the path DOMAIN/ALGORITHM/buffer tells it."""
    tasks: tuple[str, ...] = ()
    """Task ids, such as walker_run, in the order of the columns. Default: all of the domain that the states allow."""
    mode: Mode = "exact"
    """exact: as dm_control pays. exorl: ExoRL's own number, which leaves out the action."""
    jobs: int = 0
    """Processes; 0: one for each core, or fewer for few files."""
    backend: Backend = "loky"
    """loky: processes of this machine. dask, ray: of a cluster, whose machines see the folders under the same names."""
    address: str | None = None
    """Of the Dask scheduler or Ray cluster. Default: one that is started here."""
    skip_bad: bool = False
    """Leave bad and foreign files out, say so in OUT/skipped.txt, and go on, instead of stopping at the first."""
    clip: bool = False
    """Clip actions to [-1, 1], however far they are beyond, as the environment does too."""
    overwrite: bool = False
    """Replace a folder that this step made."""


def main(args: Args) -> None:
    """Write the relabelled files.

    Raises:
        UserError: in one line, for anything wrong with the folder, the files or the tasks. The folder is not made then.
    """
    found = relabel(
        args.folder,
        args.out,
        tasks=args.tasks,
        mode=args.mode,
        domain=args.domain,
        jobs=args.jobs,
        backend=args.backend,
        address=args.address,
        skip_bad=args.skip_bad,
        clip=args.clip,
        overwrite=args.overwrite,
    )
    skipped = f"; {len(found.skipped)} bad files skipped, see {args.out / SKIPPED}" if found.skipped else ""
    there = "" if found.made else "; they were there already"
    print(f"{args.out}: {found.episodes} episodes with rewards of {', '.join(found.tasks)}{skipped}{there}")


if __name__ == "__main__":
    main(tyro.cli(Args))
