"""The command line: `ringrl demo | data | train | evaluate | report | export | plan | ls | cp`."""

import difflib
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import tyro

from ringrl import __version__
from ringrl.cli.failures import explain
from ringrl.cli.plan_verb import PlanVerb
from ringrl.cli.recipe_verbs import CopyVerb, DataVerb, ListVerb, run_data_step
from ringrl.cli.run_verbs import DemoVerb, EvaluateVerb, ExportVerb, ReportVerb, TrainVerb
from ringrl.cli.usage import usage_error_in_one_line
from ringrl.ending import Stopped, leave
from ringrl.errors import UserError

VERBS = {
    "demo": DemoVerb,
    "train": TrainVerb,
    "evaluate": EvaluateVerb,
    "export": ExportVerb,
    "report": ReportVerb,
    "plan": PlanVerb,
    "ls": ListVerb,
    "cp": CopyVerb,
    "data": DataVerb,
}


def main() -> None:
    """Entry point. Bad input ends with one line on stderr and status 2; `--debug` shows the traceback."""
    _open_closed_streams()
    try:
        _run(sys.argv[1:])
    finally:
        _end_if_output_closed()


def _run(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = [_expand_home(argument) for argument in arguments if argument != "--debug"]
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
    except Stopped as stopped:
        if stopped.message:
            _say(stopped.message)
        leave(stopped.status)
    except KeyboardInterrupt:
        _stop(130, "interrupted")
    except Exception as error:
        _end_if_output_closed(error)
        if debug:
            raise
        _stop(*explain(error))


def _expand_home(argument: str) -> str:
    """`~` at the beginning of an argument or after its `=`, where shells leave it, as the home folder.

    Alone after the `=` of a setting it is YAML's null.
    """
    name, separator, value = argument.partition("=")
    if separator and (name.startswith("-") or "/" in value):
        return f"{name}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)


def _open_closed_streams() -> None:
    """Where a standard stream is closed, as by `>&-`, what is written to it is lost. Without this, the next file that
    is opened would get its number, and what libraries print would go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the smallest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


def _end_if_output_closed(error: Exception | None = None) -> None:
    """End without a message, with the status of other tools, where the reader has gone, as in `ringrl ls | head -1`.

    Where the output cannot be written for another reason, such as a full disk, end with that.
    """
    full: OSError | None = None
    try:
        sys.stdout.flush()
        if not isinstance(error, BrokenPipeError):
            return
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are always reported; the error may be of another pipe
        if not poll.poll(0):
            return
    except BrokenPipeError:
        pass
    except OSError as reason:
        full = reason
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
    if full is not None:
        _stop(2, f"the standard output cannot be written ({full.strerror}); what was to be said is lost")
    sys.exit(128 + signal.SIGPIPE)


def _stop(status: int, message: str) -> NoReturn:
    _say(message)
    sys.exit(status)


def _say(message: str) -> None:
    with suppress(OSError):  # where nobody reads it, the status alone says it
        print(f"ringrl: {message}", file=sys.stderr, flush=True)


def _dispatch(arguments: list[str]) -> None:
    if arguments[:1] == ["data"]:
        run_data_step(arguments[1:])
        return
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
        raise UserError(f"{arguments[0]}: no verb of that name; {advice}")
    about = (
        "In-context reinforcement learning at any context length. `ringrl data STEP --help` for data preparation. "
        "`--debug` beside any verb shows the traceback of an error. `ringrl --tyro-write-completion bash FILE` (or "
        "zsh, tcsh) writes what completes verbs and options in a shell that sources FILE."
    )
    with usage_error_in_one_line():
        verb = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            args=arguments,
            prog="ringrl",
            description=about,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    verb.run()


def _choose_devices() -> None:
    """CPU where there is no accelerator; RINGRL_CPU_DEVICES=N simulates N of them, to try a mesh on a laptop.

    JAX_ENABLE_X64 is meant for other programs: ringrl computes in float32 and bfloat16, and what it makes must not
    depend on it.
    """
    if "JAX_ENABLE_X64" in os.environ:
        os.environ["JAX_ENABLE_X64"] = "0"  # of this process, whose JAX may be there already, and of those it starts
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_enable_x64", False)
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
