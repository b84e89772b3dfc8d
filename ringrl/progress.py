"""The progress line of a long step."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def tracked(items: Iterable[Item], label: str, total: int) -> Iterable[Item]:
    """The items, with a bar and the time left on stderr while they are taken; nothing in a pipe or a file."""
    console = Console(stderr=True)
    return track(items, label, total=total, console=console, disable=not console.is_terminal)
