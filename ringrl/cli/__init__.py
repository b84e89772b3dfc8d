"""The command line: `ringrl demo | data | train | evaluate | report | export | plan | ls | cp`."""

import sys

from ringrl.ending import signals_taken
from ringrl.memory_pool import keep_freed_memory

_TRAINING = ("train", "demo")


def main() -> None:
    """Entry point. SIGTERM and Ctrl-C are taken before anything slow is imported (`ringrl.ending`)."""
    if any(verb in sys.argv[1:3] for verb in _TRAINING):
        keep_freed_memory()  # before there is a second thread
    with signals_taken(_clean_up):
        from ringrl.cli.entry import main

        main()


def _clean_up() -> None:
    clean_up = getattr(sys.modules.get("ringrl.files"), "clean_up", None)
    if clean_up is not None:  # else it is half imported, and nothing written
        clean_up()


__all__ = ["main"]
