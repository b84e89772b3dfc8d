"""How a command ends that is asked to, by SIGTERM, which batch systems send, or by SIGINT, which is Ctrl-C.

Python gives a signal to the main thread, between two of its instructions: not before the compiler has done, and as an
exception that goes through all that is running there. Where native code has called Python, or the interpreter ends
while native threads still work, that may be a segmentation fault. So the command line takes both signals with a thread
of its own, which the kernel wakes by a pipe. It removes temporary files, frees the locks, and ends the process without
what Python does at its end: to the files, this is a kill, which they survive.

Work that has a good place to stop says so: inside `finishing` the first signal only asks.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_END_SECONDS = 10.0  # in which a process that is to end does so, also where its end hangs
_FLUSH_SECONDS = 1.0  # the main thread may be waiting for the reader of the output
_LOOK_SECONDS = 0.002  # between two looks at what the thread has decided
_SAME_PRESS = 1.0  # seconds: a launcher hands on the Ctrl-C that the terminal has sent already


class Stopped(KeyboardInterrupt):
    """Work that was asked to stop has stopped, at a good place."""

    def __init__(self, number: int, message: str):
        """`number`: of the signal. `message`: one line for the user, or nothing."""
        super().__init__(message)
        self.number, self.message = number, message

    @property
    def status(self) -> int:
        """The exit status, as shells give it."""
        return 128 + self.number


class _Watcher:
    """The thread that takes the signals, and what it knows."""

    def __init__(self, clean_up: Callable[[], None]):
        """Take those signals that are not ignored, as after `nohup`."""
        self.finishing: list[str] = []  # what is being finished, innermost last
        self.asked = 0  # the signal that asked for it
        self.last_words: list[Callable[[str], None]] = []
        self._clean_up, self._when = clean_up, 0.0
        self._decided = 0  # signals that only ask, as this thread has found
        self._paused = 0  # signals at which the main thread has paused
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, end == self._pipe[0])
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._pause) for number in taken}
        threading.Thread(target=self._watch, name="ringrl signals", daemon=True).start()

    def give_back(self) -> None:
        """Let the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._pipe[1])  # which ends the thread

    def leave_to_child(self) -> None:
        """In a forked child, which has no such thread: the signals do what they do by default."""
        signal.set_wakeup_fd(-1)
        for end in self._pipe:
            os.close(end)
        for number in self._before:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def end(self, number: int) -> None:
        """End the process."""
        why = f"interrupted by {signal.Signals(number).name}"
        deadline = threading.Timer(_END_SECONDS, os._exit, (128 + number,))
        deadline.daemon = True
        deadline.start()
        _say(why)
        for words in self.last_words:
            with suppress(Exception):
                words(why)
        self._clean_up()
        leave(128 + number)

    def _watch(self) -> None:
        while byte := os.read(self._pipe[0], 1):
            if byte[0] in self._before:
                if not self._only_asks(byte[0]):
                    self.end(byte[0])
                self._decided += 1
        os.close(self._pipe[0])

    def _only_asks(self, number: int) -> bool:
        """Whether what is being done is finished first. A second Ctrl-C ends the process all the same."""
        now = time.monotonic()
        if not self.finishing:
            return False
        if self.asked:
            return number != signal.SIGINT or now < self._when + _SAME_PRESS
        self._when = now
        _say(f"{signal.Signals(number).name}: finishing {self.finishing[-1]}, then stopping; Ctrl-C ends it at once")
        self.asked = number  # after the line, for what looks at it may end the process at once
        return True

    def _pause(self, number: int, frame: object) -> None:
        """In the main thread, which is not to meddle while the process is ended.

        The next signal interrupts this too, at any place, and comes here again: a lock would wait for itself.
        """
        self._paused += 1
        mine, end = self._paused, time.monotonic() + _END_SECONDS
        while self._decided < mine and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)


_watcher: _Watcher | None = None


@contextmanager
def signals_taken(clean_up: Callable[[], None]) -> Iterator[None]:
    """While inside, SIGTERM and Ctrl-C end this process with one line and status 143 or 130; see the module.

    Only the main thread may enter.

    Args:
        clean_up: called before.
    """
    global _watcher
    _watcher = _Watcher(clean_up)
    try:
        yield
    finally:
        watcher, _watcher = _watcher, None
        if watcher is not None:  # a forked child has none
            watcher.give_back()


@contextmanager
def finishing(what: str) -> Iterator[Callable[[], int]]:
    """While inside, the first signal ends nothing: it is noted, for the caller to raise `Stopped` at a good place.

    Where `signals_taken` is not in force nothing changes: Ctrl-C is Python's KeyboardInterrupt.

    Args:
        what: is to be finished, for the user.

    Yields:
        A function that returns the signal that has been sent, or 0.

    Raises:
        Stopped: at the end, where the caller has not.
    """
    watcher = _watcher
    if watcher is None:
        yield lambda: 0
        return
    watcher.finishing.append(what)
    try:
        yield lambda: watcher.asked
    finally:
        watcher.finishing.pop()
    if watcher.asked:
        raise Stopped(watcher.asked, f"interrupted by {signal.Signals(watcher.asked).name}")


@contextmanager
def last_words(say: Callable[[str], None]) -> Iterator[None]:
    """While inside, `say` is called with the reason where a signal ends this process."""
    watcher = _watcher
    if watcher is None:
        yield
        return
    watcher.last_words.append(say)
    try:
        yield
    finally:
        watcher.last_words.remove(say)


def leave(status: int) -> None:
    """End the process now, without what Python does at its end; what was printed is written."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_SECONDS)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _say(message: str) -> None:
    with suppress(OSError):
        os.write(2, f"ringrl: {message}\n".encode())


def _leave_to_child() -> None:
    global _watcher
    if _watcher is not None:
        watcher, _watcher = _watcher, None
        watcher.leave_to_child()


_forking = threading.local()


def _hold_signals() -> None:
    """Before a fork: a signal that meets the child before `_leave_to_child` would be taken for the parent's."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _begin_child() -> None:
    _leave_to_child()
    _let_signals()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_begin_child)
