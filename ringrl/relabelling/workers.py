"""Relabelling many files at once, in processes of this machine or of a cluster, through joblib.

    for file, episode in relabel_files(files, ["walker_run"], workers=Workers(jobs=4)): ...

gives the files in their order, regardless of the number of workers; `data/build_store.py` reads from it. Dask and Ray
run the same work on other machines, which must see the files under the same absolute paths. Ray is not tested.
"""

import functools
import importlib
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import joblib

from ringrl.episode import Dims, Episode
from ringrl.errors import UserError
from ringrl.formats.exorl import EpisodeFile, read_episode
from ringrl.relabelling.rewards import Mode, Relabeler

Backend = Literal["loky", "dask", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")

# Files in memory at once for each worker: enough that few wait where one batch of files ends and the next begins.
_AHEAD = 32
_ANSWER_SECONDS = 10  # for a Dask scheduler
_WORTH_A_PROCESS = 50  # episodes of the suite that are relabelled in the time in which a process starts


@dataclass(frozen=True)
class Workers:
    """The processes that do the work.

    Attributes:
        jobs: processes; 1 is this process alone, 0 one for each core, or fewer for few files. A cluster that `address`
            names has its own.
        backend: joblib's: loky are processes of this machine.
        address: of the Dask scheduler or Ray cluster; None starts one on this machine with `jobs` processes.
    """

    jobs: int = 1
    backend: Backend = "loky"
    address: str | None = None

    def __post_init__(self):
        """Check the fields."""
        if self.jobs < 0:
            raise UserError(f"{self.jobs} jobs: give a number of processes, or 0 for one on each core")
        if self.address is not None and self.backend == "loky":
            raise UserError(f"an address ({self.address}) goes with --backend dask or ray, not with loky")


class BadFile(NamedTuple):
    """A file that could not be relabelled.

    Attributes:
        reason: one line, which names the file.
        damaged: whether the fault is the file's own, so that it may be skipped; else it does not fit the tasks.
    """

    reason: str
    damaged: bool


def relabel_files(
    files: Sequence[EpisodeFile],
    task_ids: Sequence[str],
    mode: Mode = "exact",
    *,
    dims: Dims | None = None,
    clip: bool = False,
    workers: Workers | None = None,
    on_damaged: Callable[[EpisodeFile, str], None] | None = None,
) -> Iterator[tuple[EpisodeFile, Episode]]:
    """Read and relabel files, several at once, and yield them in the order given.

    At most 32 files for each worker are in memory.

    Args:
        files: from `list_episodes`.
        task_ids: the tasks, a reward column each.
        mode: as for `Relabeler`.
        dims: the widths that the files must have, as for `read_episode`.
        clip: as for `read_episode`.
        workers: the processes; None is this process alone.
        on_damaged: called with each file that `read_episode` refuses and the reason, in place of the error.

    Raises:
        UserError: naming the file, as `read_episode` and `Relabeler`; and as `parallel_map`.
    """
    relabel = functools.partial(relabel_file, task_ids=tuple(task_ids), mode=mode, dims=dims, clip=clip)
    with closing(parallel_map(relabel, files, workers or Workers(), ahead=_AHEAD)) as results:
        for file, result in zip(files, results, strict=True):
            if isinstance(result, Episode):
                yield file, result
            elif result.damaged and on_damaged is not None:
                on_damaged(file, result.reason)
            else:
                raise UserError(result.reason)


def relabel_file(
    file: EpisodeFile, task_ids: tuple[str, ...], mode: Mode, dims: Dims | None, clip: bool
) -> Episode | BadFile:
    """Read and relabel one file: what a worker does, so that errors are values."""
    try:
        episode = read_episode(file, dims=dims, clip=clip)
    except UserError as error:
        return BadFile(str(error), damaged=True)
    try:
        return replace(episode, reward=_relabeler(task_ids, mode)(episode))
    except UserError as error:
        return BadFile(f"{file}: {error}", damaged=False)


@functools.lru_cache(maxsize=1)
def _relabeler(task_ids: tuple[str, ...], mode: Mode) -> Relabeler:
    """The one of this process."""
    return Relabeler(task_ids, mode)


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: Workers, *, ahead: int
) -> Generator[Result, None, None]:
    """`function` of each item, in order; at most `ahead` results for each worker wait to be taken.

    Raises:
        UserError: if a backend is not installed, or no Dask scheduler answers at the address.
        Exception: what `function` raises.
    """
    if workers.backend == "loky":
        jobs = workers.jobs or min(joblib.cpu_count(), 1 + len(items) // _WORTH_A_PROCESS)
        if jobs == 1:
            yield from map(function, items)
            return
        workers = replace(workers, jobs=jobs)
        function = functools.partial(_while_parent_lives, os.getpid(), function)
    with _joblib(workers):
        # joblib's generator runs on however slowly it is read, so it is given a batch of items at a time. Ray's backend
        # has none.
        options: dict[str, Any] = {"return_as": "list" if workers.backend == "ray" else "generator", "batch_size": 1}
        parallel: Any = joblib.Parallel(**options)
        at_once = ahead * joblib.effective_n_jobs(_n_jobs(workers))
        for start in range(0, len(items), at_once):
            results = parallel(joblib.delayed(function)(item) for item in items[start : start + at_once])
            try:
                for result in results:  # noqa: UP028 - `yield from` would close it itself
                    yield result
            finally:
                _stop(results)


def _stop(results: Any) -> None:
    """End what joblib still computes for results that are not read, without its warning."""
    if isinstance(results, Generator):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.close()


def _while_parent_lives(parent: int, function: Callable[[Item], Result], item: Item) -> Result:
    """`function(item)` in a process that ends soon after `parent`: loky's would wait five minutes for more work."""
    _end_with(parent)
    return function(item)


@functools.cache
def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _n_jobs(workers: Workers) -> int:
    """In joblib's numbering, where -1 is all that there are."""
    return -1 if workers.address else workers.jobs or -1


@contextmanager
def _joblib(workers: Workers) -> Iterator[None]:
    """joblib set up for `workers`; what is started for it ends with it."""
    with ExitStack() as stack:
        options: dict[str, Any] = {"n_jobs": _n_jobs(workers)}
        if workers.backend == "dask":
            distributed = _import("distributed", "ringrl[dask]")
            logging.getLogger("distributed").setLevel(logging.WARNING)  # it logs every connection
            if workers.address is None:
                cluster = distributed.LocalCluster(
                    n_workers=workers.jobs or joblib.cpu_count(), threads_per_worker=1, dashboard_address=":0"
                )
                stack.enter_context(cluster)
            else:
                cluster = _answering(workers.address)
            client = distributed.Client(cluster, timeout=_ANSWER_SECONDS, set_as_default=False)
            options |= {"client": stack.enter_context(client)}
        elif workers.backend == "ray":
            ray = _import("ray", "ray")
            ray.init(workers.address, num_cpus=None if workers.address else workers.jobs or None)
            stack.callback(ray.shutdown)
            importlib.import_module("ray.util.joblib").register_ray()
        else:
            options |= {"inner_max_num_threads": 1}  # the cores are taken by the processes
        with joblib.parallel_config(backend=workers.backend, **options):
            yield


def _answering(address: str) -> str:
    """`address`, once something listens there: Dask's client retries for long, and then fails with an unclear error."""
    comm = _import("distributed.comm", "ringrl[dask]")
    try:
        socket.create_connection(comm.get_address_host_port(address), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"no Dask scheduler answers at {address} ({error}); it is given as tcp://HOST:PORT") from error
    return address


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{module} is not installed: pip install '{package}', or take --backend loky") from None
