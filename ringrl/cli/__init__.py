"""The command line: `ringrl demo | data | train | evaluate | report | export | plan | ls | cp`."""

import sys

from ringrl.ending import signals_taken


def main() -> None:
    """Entry point. SIGTERM and Ctrl-C are taken before anything slow is imported (`ringrl.ending`)."""
    with signals_taken(_clean_up):
        from ringrl.cli.entry import main

        main()


def _clean_up() -> None:
    files = sys.modules.get("ringrl.files")
    if hasattr(files, "clean_up"):  # it may be half imported, and nothing written
        files.clean_up()


__all__ = ["main"]
