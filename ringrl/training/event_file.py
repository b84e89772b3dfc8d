"""TensorBoard's file of a run's scalars, written in the caller's thread.

tensorboardX's `SummaryWriter` writes in a thread of its own: where a disk is full, that thread ends with a traceback,
and when its queue of ten is full, the training waits for it for ever.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringrl.errors import unwritable
from ringrl.run import RunDirectory
from ringrl.trackers import TrainingStatus


class EventFile:
    """The tracker `tensorboard` (`ringrl.trackers.Tracker`): a new file in the folder `tensorboard/` of a run."""

    def begin(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin a file. What earlier files say of steps after `step` no longer counts. UserError: it cannot be written.

        The configuration is not shown: it is config.yaml, beside the folder.
        """
        # Slow to import where PyTorch is installed, and for one process only.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        folder = RunDirectory(run).tensorboard
        self._event, self._scalar = Event, scalar
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
            for more in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
                self._writer.write_event(Event(step=step + 1, **more))
        except OSError as error:
            raise unwritable(folder, error) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step, at once. Raises OSError where they cannot be written."""
        for name, value in values.items():
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)))
        self._writer.flush()

    def end(self, status: TrainingStatus) -> None:
        """Close the file. Raises OSError where its last bytes cannot be written."""
        self._writer.close()
