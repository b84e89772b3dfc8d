"""The command line: `ringrl demo | data | train | evaluate | report | export | plan | ls | cp`."""

import io
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import tyro

from ringrl import __version__, recipes
from ringrl.cli.verbs import VERBS
from ringrl.errors import UserError


def main() -> None:
    """Entry point. Bad input ends with one line on stderr and status 2; `--debug` shows the traceback."""
    try:
        _run(sys.argv[1:])
    finally:
        _end_if_nobody_reads()


def _run(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments == ["--version"]:
        print(f"ringrl {__version__}")
        return
    try:
        _choose_devices()
        _dispatch(arguments)
    except UserError as error:
        if debug:
            raise
        _stop(2, str(error))
    except KeyboardInterrupt:
        _stop(130, "interrupted")
    except Exception as error:
        _end_if_nobody_reads(error)
        if debug:
            raise
        _stop(1, f"{type(error).__name__}: {' '.join(str(error).split())[:400]} (--debug shows where)")


def _end_if_nobody_reads(error: Exception | None = None) -> None:
    """End in silence, with the status of other tools, where what we print to has gone, as in `ringrl ls | head -1`."""
    try:
        sys.stdout.flush()
        if not isinstance(error, BrokenPipeError):
            return
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # it tells of errors unasked; the error may be of another pipe
        if not poll.poll(0):
            return
    except BrokenPipeError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
    sys.exit(128 + signal.SIGPIPE)


def _stop(status: int, message: str) -> NoReturn:
    print(f"ringrl: {message}", file=sys.stderr)
    sys.exit(status)


def _dispatch(arguments: list[str]) -> None:
    if arguments[:1] == ["data"]:
        _run_data_step(arguments[1:])
        return
    about = "In-context reinforcement learning at any context length. `ringrl data STEP --help` for data preparation."
    with _usage_error_in_one_line():
        verb = tyro.extras.subcommand_cli_from_dict(
            {**VERBS, "data": DataHelp},
            args=arguments,
            prog="ringrl",
            description=about,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    if isinstance(verb, DataHelp):
        _run_data_step([])
    else:
        verb.run()


@contextmanager
def _usage_error_in_one_line() -> Iterator[None]:
    """Turn the box that tyro draws around a usage error into a UserError."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        _title, *lines = (line.strip("│╭╮╰╯ ") for line in box.getvalue().splitlines())
        # Rules (of dashes where the terminal knows no others) part what is wrong from a pointer to --help.
        parts = re.split(r"^[-─]{3,}$", "\n".join(lines), flags=re.MULTILINE)
        message = next(" ".join(part.split()) for part in parts if part.strip()).rstrip(".")
        raise UserError(f"{message}; `--help` shows what can be given") from stop


@dataclass(frozen=True)
class DataHelp:
    """Run a data preparation step: `ringrl data STEP ...`; a step is a file in data/, or your own."""


def _run_data_step(arguments: list[str]) -> None:
    """`ringrl data STEP ...`: load data/STEP.py, read its `Args` from the command line, run its `main`."""
    steps = recipes.listing()["data"]
    if not arguments:
        raise UserError(f"data needs a STEP: {', '.join(name for name, _ in steps)}, or a file of your own")
    if arguments[0] in ("-h", "--help"):
        print("usage: ringrl data STEP [--help] ...\n\nsteps:")
        for name, about in steps:
            print(f"  {name:<20} {about}")
        return
    step = recipes.load("data", arguments[0])
    with _usage_error_in_one_line():
        settings = tyro.cli(step.Args, args=arguments[1:], prog=f"ringrl data {arguments[0]}", description=step.__doc__)
    step.main(settings)


def _choose_devices() -> None:
    """CPU where there is no accelerator; RINGRL_CPU_DEVICES=N simulates N of them, to try a mesh on a laptop."""
    if not any(any(Path("/dev").glob(pattern)) for pattern in ("accel*", "vfio/[0-9]*", "nvidia*", "kfd")):
        # With libtpu installed (ringrl[plan]) JAX would look for TPUs first, slowly and with warnings.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    count = os.environ.get("RINGRL_CPU_DEVICES")
    if not count:
        return
    if not count.isdigit() or int(count) < 1:
        raise UserError(f"RINGRL_CPU_DEVICES={count}: give a whole number of devices, 1 or more")
    import jax

    jax.config.update("jax_num_cpu_devices", int(count))


if __name__ == "__main__":
    main()
