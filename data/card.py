"""An episode store -> its data-set card: what is in it, as card.json and one page.

    ringrl data card stores/walker                            # -> stores/walker.card/index.html

Counts, returns by task and source, how monotone the histories are, what the observations cover, where all came from,
and what is missing or odd, in words. Takes seconds for a store of any size: coverage is that of a sample.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ringrl.card.card_page import write_card


@dataclass(frozen=True)
class Args:
    """Write the data-set card of an episode store."""

    store: Annotated[str, tyro.conf.Positional]
    """The store's folder or URL."""
    out: Path | None = None
    """Folder for card.json and index.html; default STORE.card beside the store."""
    seed: int = 0
    """Of the sample that coverage is drawn from."""


def main(args: Args) -> None:
    """Write the card.

    Raises:
        UserError: in one line, if the store cannot be read or the folder not be written.
    """
    print(write_card(args.store, args.out, seed=args.seed))


if __name__ == "__main__":
    main(tyro.cli(Args))
