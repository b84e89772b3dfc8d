"""A store of format 2 -> the same store in the present format.

    ringrl data convert_store stores/walker --out stores/walker-3

Episodes, rewards, returns, physics states, sources and provenance are kept to the bit; the dummy rows of format 2,
which belong to no step, are not. The old store is only read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ringrl.formats.store_v2 import VERSION, StoreV2
from ringrl.progress import tracked
from ringrl.store.episode_store import build


@dataclass(frozen=True)
class Args:
    """Convert an episode store of format 2."""

    store: Annotated[str, tyro.conf.Positional]
    """The old store, a folder or a URL."""
    out: Path
    """The store to make."""
    clip: bool = False
    """Clip actions to [-1, 1], however far they are beyond, as the environment does too."""
    overwrite: bool = False
    """Replace a store of that name."""


def main(args: Args) -> None:
    """Convert the store.

    Raises:
        UserError: in one line, if the store is damaged or not of format 2, or `out` exists. No store is left then.
    """
    old = StoreV2(args.store, clip=args.clip)
    build(
        args.out,
        tracked(old, "converting the store", len(old)),
        domain=old.domain,
        tasks=old.tasks,
        sources=old.sources,
        provenance=old.provenance | {"converted_from_format": VERSION} | ({"clip": True} if args.clip else {}),
        returns={task: old.returns(task) for task in old.tasks},
        overwrite=args.overwrite,
    )
    print(f"{args.out}: {len(old)} episodes of {old.domain}, converted from {args.store}")


if __name__ == "__main__":
    main(tyro.cli(Args))
