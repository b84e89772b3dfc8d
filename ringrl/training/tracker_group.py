"""The trackers of a training (`ringrl.trackers`), made by their names and called so that none of them can end it."""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ringrl.errors import UserError, one_line
from ringrl.run import RunDirectory
from ringrl.trackers import Tracker, TrainingStatus
from ringrl.training.event_file import EventFile
from ringrl.training.wandb_run import WandbRun
from ringrl.user_modules import import_named

_log = logging.getLogger(__name__)
_SETTING = "training.trackers"
_MADE_BY = {"tensorboard": EventFile, "wandb": WandbRun}


class TrackerGroup:
    """Shows a training to several trackers, in the order in which they were named.

    A tracker that cannot be made, or whose `begin` raises, is the user's error: the training has not begun, and the
    line says which. Later an exception is a warning, and the training goes on without that tracker, for its steps have
    cost more than a curve: lines are in metrics.jsonl, which is written first, and can be shown again. When the
    training ends, a second warning says from which step on the tracker has nothing.
    """

    def __init__(self, names: Iterable[str] = (), own: Iterable[object] = ()):
        """Make those of a config by their `names`; `own` are a caller's objects.

        Raises:
            UserError: a module cannot be imported or has no such name, calling that fails or gives no tracker, one of
                `own` is none, or W&B is not installed.
        """
        self._trackers = [(f"{_SETTING}: {name}", _make(name)) for name in dict.fromkeys(names)]
        for index, each in enumerate(own):
            label = f"trackers[{index}] ({type(each).__name__})"
            self._trackers.append((label, _checked(each, label)))
        self._begun: list[tuple[str, Tracker]] = []
        self._failed: dict[str, int] = {}

    @contextmanager
    def watching(self, run: RunDirectory, step: int) -> Iterator[None]:
        """While the run is trained from `step` on.

        Raises:
            UserError: a tracker cannot begin; those before it are ended.
        """
        status: TrainingStatus = "failed"
        config = run.settings() if self._trackers else {}
        try:
            for label, tracker in self._trackers:
                try:
                    tracker.begin(run.path, config, step)
                except UserError:
                    raise
                except (Exception, SystemExit) as error:
                    raise UserError(
                        f"{label}: cannot begin ({_describe(error)}); correct it, or leave it out of {_SETTING}"
                    ) from error
                self._begun.append((label, tracker))
            yield
            status = "finished"
        except KeyboardInterrupt:  # `ringrl.ending.Stopped` is one
            status = "stopped"
            raise
        finally:
            self._end(status)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show a logged step to each tracker that has not failed yet."""
        for label, tracker in self._begun:
            if label in self._failed:
                continue
            try:
                tracker.log(step, dict(values))
            except (Exception, SystemExit) as error:
                self._failed[label] = step
                _warn(f"{label}: failed at step {step} ({_describe(error)}); the training goes on without it")

    def _end(self, status: TrainingStatus) -> None:
        for label, tracker in self._begun:
            try:
                tracker.end(status)
            except (Exception, SystemExit) as error:
                _warn(f"{label}: failed at its end ({_describe(error)}); the run itself is whole")
            if label in self._failed:
                _log.warning("%s: has nothing from step %d on; metrics.jsonl has it", label, self._failed[label])
        self._begun.clear()


def _make(name: str) -> Tracker:
    made_by = _MADE_BY.get(name)
    if made_by is not None:
        return made_by()
    module, _, attribute = name.partition(":")
    label = f"{_SETTING}: {name}"
    make = getattr(import_named(module, label), attribute, None)
    if not callable(make):
        raise UserError(f"{label}: {module} has no class {attribute}; correct the name")
    try:
        return _checked(make(), label)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{label}: cannot be made ({_describe(error)}); it is called without arguments") from error


def _checked(made: object, label: str) -> Tracker:
    if isinstance(made, type) or not isinstance(made, Tracker):
        raise UserError(f"{label}: is no tracker; it must be an object with the methods begin, log and end")
    return made


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _warn(message: str) -> None:
    """A warning; with --debug also the traceback of the error that is being handled."""
    _log.warning(message, exc_info="--debug" in sys.argv)
