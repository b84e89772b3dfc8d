"""A process that steps environments for another one: commands come through a socket, numbers through shared memory.

`EnvPool` starts it. It imports neither JAX nor the main program, and ends when the socket is closed, so also when the
main process dies.
"""

import mmap
import os
import pickle
import struct
import traceback
from multiprocessing.reduction import recv_handle
from typing import Any

from ringrl.envs.env_batch import EnvBatch, StepArrays
from ringrl.envs.scalar_rewards import use_scalar_rewards
from ringrl.errors import UserError

MAKE, RESET, STEP, RESTART, EXPERT, CLOSE = range(6)
"""Commands. All but CLOSE are answered, in their order: 0, or 1 and what failed in UTF-8."""

_HEADER = struct.Struct("<BII")  # of a message: kind, number of the batch, bytes that follow


class Channel:
    """One end of a socket between two processes, for messages of a few bytes that have to be quick."""

    def __init__(self, descriptor: int):
        """`descriptor`: the socket's, which is the channel's from now on."""
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._descriptor

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Send a message of a batch: a command, or whether one failed. Raises OSError where nobody listens."""
        message = _HEADER.pack(kind, number, len(payload)) + payload
        while message:
            message = message[os.write(self._descriptor, message) :]

    def receive(self) -> tuple[int, int, bytes]:
        """The next message: kind, number, payload. Raises EOFError where the other end is closed, or OSError."""
        kind, number, size = _HEADER.unpack(self._read(_HEADER.size))
        return kind, number, self._read(size) if size else b""

    def _read(self, size: int) -> bytes:
        found = os.read(self._descriptor, size)
        while len(found) < size:
            more = os.read(self._descriptor, size - len(found)) if found else b""
            if not more:
                raise EOFError
            found += more
        return found

    def close(self) -> None:
        """Close the socket."""
        os.close(self._descriptor)


def serve(descriptor: int) -> None:
    """Do what is asked for through a socket until it is closed."""
    use_scalar_rewards()
    channel, batches = Channel(descriptor), {}
    while True:
        try:
            command, number, payload = channel.receive()
        except (EOFError, OSError):
            break
        failure = ""
        try:
            _obey(command, number, payload, channel, batches)
        except Exception as error:  # an environment may be a user's
            failure = _describe(error)
        if command != CLOSE:
            try:
                channel.send(bool(failure), number, failure.encode())
            except OSError:
                break
    for batch in batches.values():
        batch.close()


def _obey(command: int, number: int, payload: bytes, channel: Channel, batches: dict[int, EnvBatch]) -> None:
    if command == MAKE:
        descriptor = recv_handle(channel)
        settings, seeds, widths, (first, stride) = pickle.loads(payload)
        memory = mmap.mmap(descriptor, StepArrays.layout(*widths)[1])
        os.close(descriptor)
        batches[number] = EnvBatch(settings, seeds, StepArrays.over(memory, *widths).part(first, stride))
    elif command == CLOSE:
        if number in batches:
            batches.pop(number).close()
    elif number not in batches:
        raise UserError("its environments could not be made")
    elif command == RESET:
        batches[number].reset(pickle.loads(payload))
    elif command == EXPERT:
        batches[number].expert()
    else:
        batches[number].step(restart=command == RESTART)


def _describe(error: Exception) -> str:
    """One line; of an error that is not meant for users also where it was raised."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    frames: Any = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {text[:300]} ({frames[-1].filename}, line {frames[-1].lineno})"
