"""The command line: `ringrl demo | data | train | evaluate | report | export | plan | ls | cp`."""

import sys

from ringrl.ending import signals_taken


def main() -> None:
    """Entry point. SIGTERM and Ctrl-C are taken before anything slow is imported (`ringrl.ending`)."""
    with signals_taken(_clean_up):
        from ringrl.cli.entry import main

        main()


def _clean_up() -> None:
    clean_up = getattr(sys.modules.get("ringrl.files"), "clean_up", None)
    if clean_up is not None:  # else it is half imported, and nothing written
        clean_up()


__all__ = ["main"]
