"""A process that steps environments for another one: commands come through a socket, numbers through shared memory.

`EnvPool` starts it. It imports neither JAX nor the main program, and ends when the socket is closed, so also when the
main process dies.
"""

import mmap
import os
import pickle
import struct
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from ringrl.envs.env_batch import EnvBatch, StepArrays
from ringrl.errors import UserError

MAKE, RESET, STEP, RESTART, EXPERT, CLOSE = range(6)
"""Commands. All but CLOSE are answered, in their order."""

HEADER = struct.Struct("<BI")
"""Of a message: the command, or whether it failed; the number of the batch. Then a pickle, or what failed in UTF-8."""


def serve(descriptor: int) -> None:
    """Do what is asked for through a socket until it is closed."""
    connection, batches = Connection(descriptor), {}
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionError):
            break
        command, number = HEADER.unpack_from(message)
        failure = ""
        try:
            _obey(command, number, message[HEADER.size :], connection, batches)
        except Exception as error:  # an environment may be a user's
            failure = _describe(error)
        if command != CLOSE:
            try:
                connection.send_bytes(HEADER.pack(bool(failure), number) + failure.encode())
            except ConnectionError:
                break
    for batch in batches.values():
        batch.close()


def _obey(command: int, number: int, payload: bytes, connection: Connection, batches: dict[int, EnvBatch]) -> None:
    if command == MAKE:
        descriptor = recv_handle(connection)
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
