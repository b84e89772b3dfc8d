"""How a training is stopped by a signal: by all of its processes after the same step."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import jax

from ringrl.ending import finishing
from ringrl.training.processes import service

_LOOK_SECONDS = 0.5  # after which a process looks whether another was asked to stop
_ANSWER_SECONDS = 60
_STOP, _BEGUN = "ringrl/stop", "ringrl/begun"


class StoppingPoint:
    """The step after which a training stops.

    With many processes no one may be a step ahead of another, for a step is computed by all. Where one is asked to
    stop, a thread of each says which step its process has begun, while that one begins no other; all stop after the
    next that none has begun. (JAX's preemption service agrees likewise, but takes SIGTERM for good, and nothing else.)
    """

    def __init__(self, asked: Callable[[], int]):
        """`asked`: the signal that this process was sent, or 0."""
        self._asked, self._signal, self._begun = asked, 0, 0
        self._last: int | None = None
        self._beginning, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        if jax.process_count() > 1:
            self._thread = threading.Thread(target=self._agree, name="ringrl stop", daemon=True)
            self._thread.start()

    def reached(self, step: int) -> int:
        """The signal by which the training stops after `step`, which has begun; 0 if it goes on."""
        if self._thread is None:
            return self._asked()
        with self._beginning:
            self._begun = step
            return self._signal if self._last is not None and step >= self._last else 0

    def close(self) -> None:
        """No more steps come."""
        if self._thread is not None:
            self._over.set()
            self._answer()
            self._thread.join(_LOOK_SECONDS)

    def _agree(self) -> None:
        with suppress(Exception):  # where the others cannot be reached, the heartbeat ends this process
            while not (self._asked() or self._another_is_asked()):
                if self._over.wait(_LOOK_SECONDS):
                    return
            client = service().client
            if not self._another_is_asked():
                client.key_value_set(f"{_STOP}/signal", str(self._asked()), allow_overwrite=True)
            with self._beginning:
                self._answer()
                names = [f"{_BEGUN}/{process}" for process in range(jax.process_count())]
                begun = [int(client.blocking_key_value_get(name, _ANSWER_SECONDS * 1000)) for name in names]
                self._signal = int(client.blocking_key_value_get(f"{_STOP}/signal", _ANSWER_SECONDS * 1000))
                self._last = max(begun) + 1

    def _answer(self) -> None:
        service().client.key_value_set(f"{_BEGUN}/{jax.process_index()}", str(self._begun), allow_overwrite=True)

    def _another_is_asked(self) -> bool:
        return bool(service().client.key_value_dir_get(_STOP))


@contextmanager
def stopping_point() -> Iterator[StoppingPoint]:
    """While inside, a signal stops the training where `StoppingPoint.reached` says so, and not before."""
    with finishing("this step and a checkpoint") as asked:
        point = StoppingPoint(asked)
        try:
            yield point
        finally:
            point.close()
