"""The verbs about recipes: `ringrl ls | cp | data`. They need neither JAX nor MuJoCo, but where a data step does."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from ringrl import recipes
from ringrl.cli.usage import usage_error_in_one_line
from ringrl.errors import UserError


@dataclass(frozen=True)
class ListVerb:
    """List the agents, data steps and configs that can be run by name and copied with `ringrl cp`."""

    def run(self) -> None:
        """Print them."""
        for kind, entries in recipes.listing().items():
            print(f"{kind}/")
            for name, about in entries:
                print(f"  {name:<28} {about}")


@dataclass(frozen=True)
class CopyVerb:
    """Copy an agent, data step or config to a file of your own, to be changed and run by its path."""

    name: Positional[str]
    """A name from `ringrl ls`, such as decision_transformer."""
    path: Positional[Path]
    """The new file, or a folder for it."""

    def run(self) -> None:
        """Copy it."""
        print(f"copied to {recipes.copy(self.name, self.path)}")


@dataclass(frozen=True)
class DataVerb:
    """Run a data preparation step: `ringrl data STEP ...`; a step is a file in data/, or your own."""

    def run(self) -> None:
        """Raises UserError, for a STEP is missing: `run_data_step` reads the arguments after it."""
        run_data_step([])


def run_data_step(arguments: list[str]) -> None:
    """`ringrl data STEP ...`: load data/STEP.py, read its `Args` from the command line, run its `main`.

    Raises UserError where there is no STEP, it is unknown, or its arguments are wrong.
    """
    steps = recipes.listing()["data"]
    if not arguments:
        raise UserError(f"data needs a STEP: {', '.join(name for name, _ in steps)}, or a file of your own")
    if arguments[0] in ("-h", "--help"):
        print("usage: ringrl data STEP [--help] ...\n\nsteps:")
        for name, about in steps:
            print(f"  {name:<20} {about}")
        return
    step = recipes.load("data", arguments[0])
    with usage_error_in_one_line():
        settings = tyro.cli(step.Args, args=arguments[1:], prog=f"ringrl data {arguments[0]}", description=step.__doc__)
    step.main(settings)
