"""Worker processes that step environments: many batches share them, so that all cores are busy."""

import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from multiprocessing.reduction import send_handle
from types import TracebackType

from ringrl.envs.env_batch import EnvSettings, StepArrays
from ringrl.envs.env_worker import CLOSE, EXPERT, MAKE, RESET, RESTART, STEP, Channel
from ringrl.envs.suite import DMControlEnv
from ringrl.errors import UserError

# Not multiprocessing's: that would import the caller's main module again, with JAX and without a guard around it.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from ringrl.envs.env_worker import serve; serve(int(sys.argv[1])); "
    "import os; sys.stdout.flush(); os._exit(0)"  # taking the interpreter down takes a third of a second
)
_GOODBYE_S = 5.0
_WHERE = "workers=0 steps in this process and shows where"


class EnvPool:
    """Worker processes for environments, one for each core; `with EnvPool() as pool:` ends them.

    Give it to `make_vector` or `make_groups` as `workers` where several come one after the other: starting takes about
    a second. Each worker has its share of every batch's environments. They end with this process, however it ends.

    Attributes:
        workers: the processes.
        batches: made so far.
        users: vectors that close it with the last of them.
    """

    def __init__(self, workers: int | None = None):
        """Start `workers` processes, None for one a core; it does not wait until they are ready.

        Raises:
            UserError: if `workers` is below 1, or this system cannot hand over memory (Windows).
        """
        workers = cores() if workers is None else workers
        if workers < 1:
            raise UserError(f"workers is {workers}: give 1 process or more; 0 to step in this one")
        if os.name != "posix" or not sys.executable:
            raise UserError("worker processes need a POSIX system and a Python interpreter; use workers=0")
        self.batches = self.users = 0
        self.workers = [_Worker() for _ in range(workers)]
        self._end = weakref.finalize(self, _end_all, self.workers)

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the processes were ended."""
        return not self._end.alive

    def close(self) -> None:
        """End the processes."""
        self._end()


class PooledBatch:
    """A batch whose environment i is in worker (first + i) mod workers; the interface is that of `LocalBatch`."""

    envs: tuple[DMControlEnv, ...] = ()

    def __init__(self, pool: EnvPool, settings: EnvSettings, seeds: Sequence[int], first: int, widths: tuple[int, int]):
        """Let the workers make an environment for each of `seeds`; `widths` of observation and action."""
        _check_open(pool)
        self.pool, self._task, self._number = pool, settings.task, pool.batches
        pool.batches += 1
        shape = (len(seeds), *widths)
        size, count = StepArrays.layout(*shape)[1], len(pool.workers)
        descriptor = _shared_memory(size)
        self.arrays = StepArrays.over(mmap.mmap(descriptor, size), *shape)
        shares = [(worker, (index - first) % count) for index, worker in enumerate(pool.workers)]
        self._shares = [(worker, start) for worker, start in shares if start < len(seeds)]
        for worker, start in self._shares:
            self._post(worker, MAKE, (settings, seeds[start::count], shape, (start, count)), descriptor)
        os.close(descriptor)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin to reset the environments of `arrays.which`."""
        for worker, start in self._shares:
            self._post(worker, RESET, seeds[start :: len(self.pool.workers)])

    def step(self, restart: bool) -> None:
        """Begin an agent step."""
        for worker, _ in self._shares:
            self._post(worker, RESTART if restart else STEP)

    def expert(self) -> None:
        """Begin to ask the experts."""
        for worker, _ in self._shares:
            self._post(worker, EXPERT)

    def wait(self) -> None:
        """Wait until all that was begun is done.

        Raises:
            UserError: in one line, if an environment raised an error or a worker has died; what it was, and where.
        """
        _check_open(self.pool)
        try:
            failures = [worker.finish(self._number) for worker, _ in self._shares]
        except _Died as death:
            self._give_up(death)
        failure = next(filter(None, failures), None)
        if failure is not None:
            raise UserError(failure if self._task in failure else f"{self._task}: {failure}; {_WHERE}")

    def close(self) -> None:
        """Let the workers close the environments."""
        if not self.pool.closed:
            for worker, _ in self._shares:
                self._post(worker, CLOSE)

    def _post(self, worker: "_Worker", command: int, content: object = None, descriptor: int | None = None) -> None:
        _check_open(self.pool)
        try:
            worker.post(command, self._number, b"" if content is None else pickle.dumps(content), descriptor)
        except _Died as death:
            self._give_up(death)

    def _give_up(self, death: "_Died") -> None:
        self.pool.close()
        raise UserError(f"{self._task}: a worker process {death}, so its environments are lost; {_WHERE}") from death


class _Died(Exception):
    """How a worker process ended."""


class _Worker:
    """A process, the socket to it, and what it has been asked for and has not answered."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        with theirs:
            # Of its own process group: Ctrl-C is for the main process. And the accelerator is for the model.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                process_group=0,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        self.channel = Channel(ours.detach())
        self._asked: Counter[int] = Counter()
        self._failures: dict[int, str] = {}

    def post(self, command: int, number: int, payload: bytes, descriptor: int | None) -> None:
        """Send a command for a batch."""
        try:
            self.channel.send(command, number, payload)
            if descriptor is not None:
                send_handle(self.channel, descriptor, self.process.pid)
        except OSError as error:
            raise _Died(self._how()) from error
        if command != CLOSE:
            self._asked[number] += 1

    def finish(self, number: int) -> str | None:
        """Wait for all answers for a batch; what the first failure among them was, if there was one."""
        while self._asked[number]:
            try:
                failed, answered, message = self.channel.receive()
            except (EOFError, OSError) as error:
                raise _Died(self._how()) from error
            self._asked[answered] -= 1
            if failed:
                self._failures.setdefault(answered, message.decode())
        return self._failures.pop(number, None)

    def _how(self) -> str:
        try:
            status = self.process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            return "does not answer"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_open(pool: EnvPool) -> None:
    if pool.closed:
        raise UserError("the worker processes of these environments have ended; make the environments anew")


def _shared_memory(size: int) -> int:
    """A file descriptor of memory without a name, which is freed with the last process that has it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ringrl")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.channel.close()
    for worker in workers:
        try:
            worker.process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
