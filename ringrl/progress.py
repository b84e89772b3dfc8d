"""The progress line of a long step."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn

Item = TypeVar("Item")


def tracked(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """The items, with a bar and the time left on stderr while they are taken; nothing in a pipe or a file."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=label)


def progress_bar(*columns: str | ProgressColumn, transient: bool = False) -> Progress:
    """A bar on stderr, of `columns` or rich's own; nothing in a pipe or a file, where only errors are wanted.

    Args:
        columns: what a line shows, from left to right.
        transient: whether the line disappears at the end.
    """
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)
