"""The command line: `ringrl demo | data | train | evaluate | report | export | plan | ls | cp`."""

from ringrl.cli.entry import main

__all__ = ["main"]
