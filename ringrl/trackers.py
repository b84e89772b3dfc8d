"""What a tracker is: an object that is shown a training's configuration and every logged step.

A config names trackers in `training.trackers`: `tensorboard` (the default), `wandb`, or one of your own as
`my_module:MyTracker`; `ringrl.train(..., trackers=[...])` takes objects. `ringrl.training.tracker_group` calls them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

SHIPPED = ("tensorboard", "wandb")

TrainingStatus = Literal["finished", "stopped", "failed"]
"""How a training ended: at its last step; by a signal, with its last step kept; by an error."""


@runtime_checkable
class Tracker(Protocol):
    """Is called in the first process alone, in the training's thread: what it takes, the next step waits for.

    An exception of `begin` ends the training before its first step. One of `log` or `end` does not: it is a warning
    that names the tracker, the step and the error; `log` is then called no more. `metrics.jsonl` has every line all the
    same, and every checkpoint is kept.
    """

    def begin(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Before the first step.

        Args:
            run: the run directory.
            config: what its config.yaml says, as plain values by section.
            step: steps done before; 0 for a new run. Lines of later steps may have been shown to an earlier tracker
                of the run: a killed training goes on from its newest checkpoint, and shows them again.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A line of metrics.jsonl: the steps done, and numbers by name (docs/metrics.md)."""
        ...

    def end(self, status: TrainingStatus) -> None:
        """After the last step and its checkpoint; also after an exception of `log`."""
        ...


def check_tracker_name(name: str) -> str:
    """The name itself. Raises ValueError where it is neither shipped nor of the form module:name."""
    if name not in SHIPPED and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"no tracker {name!r}; there are {', '.join(SHIPPED)}, and yours as my_module:MyTracker")
    return name
