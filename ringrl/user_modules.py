"""Modules of users that a task or a tracker names (`my_module:Rig-v0`), found in the working folder too."""

import importlib
import os
import sys
from types import ModuleType

from ringrl.errors import UserError, one_line


def import_named(module: str, named: str) -> ModuleType:
    """Import a user's module, from what is installed or else from the working folder.

    Args:
        module: its full name.
        named: what names it, for messages.

    Raises:
        UserError: there is no such module, or running it raises.
    """
    # An installed command has its own folder on the path, and not the one in which it is called.
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except Exception as error:  # a user's module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        advice = "install it, or run where it lies" if missing else "correct it"
        raise UserError(f"{named}: cannot import {module} ({one_line(error)}); {advice}") from error
