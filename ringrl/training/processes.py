"""Many processes, one run: how they find each other, agree, divide the data, and end together.

`jax.distributed` finds the processes and connects them. Two things of it that are needed here have no public name, and
are taken from its private state (as Orbax takes them), in `service` alone:
- the coordination service's key-value store and barrier. They carry the configuration and the heartbeat's address
  from process 0 to the others, and let all be ready before a run is written. The public functions for this,
  `multihost_utils.broadcast_one_to_all` and `sync_global_devices`, are collectives: they take arrays whose shapes are
  known, and may fail while process 0 takes minutes (gloo gives up after 30 s);
- the coordinator's address, where a launcher has chosen it: the one name of process 0 that all can reach.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int64

from ringrl.ending import Stopped, last_words
from ringrl.errors import UserError
from ringrl.files import clean_up
from ringrl.training.heartbeat import Heartbeat
from ringrl.training.rendezvous import addresses_of, bind_address, connect, listen, wait_for_host

T = TypeVar("T")

JOIN_SECONDS = 300.0
AGREE_SECONDS = 3600  # process 0 may have to measure a large store meanwhile


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    heartbeat_timeout: float = 60.0,
) -> Iterator[None]:
    """Join the other processes of this run, if there are any; JAX must not have touched a device yet.

    With no arguments they are looked for where Slurm, Open MPI, Kubernetes or a TPU pod announces them; else this is
    a run of one process, and nothing happens. `processes=1` is a run of one process, regardless of any launcher.

    An exception inside ends this process, after a message to the others, which end too; but `Stopped`, which all raise
    together, passes. A process that is killed ends the others as soon as its sockets close; one without a heartbeat for
    `heartbeat_timeout` seconds counts as dead.

    Args:
        coordinator: host:port of process 0, a port that is free there.
        processes: how many there are.
        process: which of them this is, from 0.
        heartbeat_timeout: seconds, 1 or more.

    Raises:
        UserError: the arguments are incomplete, or the others cannot be reached.
    """
    if not 1 <= heartbeat_timeout < math.inf:
        raise UserError(f"--heartbeat-timeout {heartbeat_timeout}: give seconds, 1 or more")
    if not _initialize(coordinator, processes, process, heartbeat_timeout):
        yield
        return
    heartbeat = _start_heartbeat(heartbeat_timeout)
    try:
        with last_words(heartbeat.fail):
            yield
    except Stopped:  # as all the others have
        heartbeat.close()
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        _end(heartbeat, error)
    heartbeat.close()


def is_first() -> bool:
    """Whether this is process 0: the one that prints, and writes what is not sharded."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def from_first(name: str, compute: Callable[[], T]) -> T:
    """The result of `compute` in process 0, returned in every process.

    Args:
        name: different for every call of a process.
        compute: called in process 0 only; its result must survive JSON.
    """
    if not jax.distributed.is_initialized():
        return compute()
    client = service().client
    if is_first():
        client.key_value_set(f"ringrl/{name}", json.dumps(compute()))
    return json.loads(client.blocking_key_value_get(f"ringrl/{name}", AGREE_SECONDS * 1000))


def wait_for_all(name: str) -> None:
    """Return when every process has called this; where one fails before, its reason ends the others meanwhile.

    Args:
        name: different for every call of a process.
    """
    if jax.distributed.is_initialized():
        service().client.wait_at_barrier(f"ringrl/{name}", AGREE_SECONDS * 1000)


@dataclass(frozen=True, eq=False)
class LocalShard:
    """The part of every batch that this process's devices store: these rows, and of each row these columns.

    A column is a step of the row, counted in ring order. On a slice of TPUs a host's chips are neighbours, but not on
    the ring, so its columns may be several runs.
    """

    rows: Int64[np.ndarray, " rows"]  # ascending
    columns: Int64[np.ndarray, " columns"]  # ascending
    shape: tuple[int, int]  # rows and steps of the whole batch


def local_shard(mesh: Mesh, rows: int, steps: int) -> LocalShard:
    """This process's shard of a batch of so many rows and steps.

    Raises:
        UserError: it is empty, or has other columns of one row than of another.
    """
    me = jax.process_index()
    owners = np.vectorize(lambda device: device.process_index, otypes=[np.int64])(mesh.devices)
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    if me not in owners:
        raise UserError(
            f"mesh {sizes}: uses {mesh.size} of {jax.device_count()} devices and none of process {me}'s; "
            "make it as large as all processes' devices together"
        )
    parts = find_parts(owners, me)
    if parts is None:
        raise UserError(
            f"mesh {sizes}: process {me} needs other columns of one row than of another; choose "
            f"data x fsdp a multiple of the number of processes ({jax.process_count()}), or else a divisor of it"
        )
    shape = owners.shape[0] * owners.shape[1], owners.shape[3] * owners.shape[4]
    part = lambda n, k, mine: np.arange(n, dtype=np.int64).reshape(k, -1)[mine].reshape(-1)  # noqa: E731
    return LocalShard(part(rows, shape[0], parts[0]), part(steps, shape[1], parts[1]), (rows, steps))


def find_parts(
    owners: Int64[np.ndarray, "data fsdp tensor seq heads"], me: int
) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " steps"]] | None:
    """Which parts of the rows and of the steps are process `me`'s.

    Args:
        owners: the process of each of the mesh's devices.
        me: a process.

    Returns:
        Whether it stores each of the data x fsdp parts of the rows, and each of the seq x heads parts of the steps;
        None where its shard is not all combinations of some rows and some steps.
    """
    data, fsdp, tensor, seq, heads = owners.shape
    mine = (owners.transpose(0, 1, 3, 4, 2).reshape(data * fsdp, seq * heads, tensor) == me).any(axis=2)
    rows, steps = mine.any(axis=1), mine.any(axis=0)
    return (rows, steps) if mine.sum() == rows.sum() * steps.sum() else None


def _initialize(coordinator: str | None, processes: int | None, process: int | None, heartbeat_timeout: float) -> bool:
    """Connect JAX with the other processes; whether there are any."""
    given = [value is not None for value in (coordinator, processes, process)]
    launcher = None if any(given) else _launcher()
    if processes == 1 or not (any(given) or launcher):
        return False
    if any(given) and not all(given):
        raise UserError("--coordinator HOST:PORT, --processes N and --process I go together: give all three or none")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator}: write it as HOST:PORT, a free port of process 0's host")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UserError(f"--process {process}: give a number from 0 to {processes - 1}")
    if coordinator is not None and process:
        wait_for_host(coordinator, JOIN_SECONDS)
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM and do nothing about it
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=int(JOIN_SECONDS),
            # By default it listens on all interfaces; a launcher's name for it says too little to choose one.
            coordinator_bind_address=bind_address(coordinator) if coordinator and not process else None,
            heartbeat_timeout_seconds=int(2 * heartbeat_timeout) + 10,  # ours is first, with a clearer message
            shutdown_timeout_seconds=60,
        )
        return jax.process_count() > 1
    except Exception as error:
        raise UserError(
            f"cannot join the other processes ({launcher or coordinator}): {' '.join(str(error).split())[:300]}; "
            "give --coordinator, --processes and --process, or --processes 1 to train alone"
        ) from error


def _launcher() -> str | None:
    """The launcher that has started several processes, of those that JAX detects; None if there is none."""
    env = os.environ
    if "SLURM_STEP_NODELIST" in env and env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")) != "1":
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in env and env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    # JAX sets TPU_ML_PLATFORM when it is imported where it finds a TPU's chips and libtpu.
    if env.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu") and "TPU_ML_PLATFORM" in env:
        return "TPU pod"
    return None


def service() -> Any:
    """JAX's private connection to the coordination service: its `client` and `coordinator_address`."""
    from jax._src.distributed import global_state

    return global_state


def _start_heartbeat(timeout: float) -> Heartbeat:
    """Connect every process with process 0, and start to watch the connections."""
    me, client = jax.process_index(), service().client
    host = (service().coordinator_address or "localhost").rpartition(":")[0].strip("[]")
    if me:
        client.key_value_set(f"ringrl/addresses/{me}", json.dumps(addresses_of(host)))
        peers = connect(from_first("heartbeat", str), me, JOIN_SECONDS)
    else:
        others = range(1, jax.process_count())
        known = [client.blocking_key_value_get(f"ringrl/addresses/{i}", int(JOIN_SECONDS * 1000)) for i in others]
        seen = [address for addresses in known for address in json.loads(addresses)]
        address, accept = listen(host, seen, len(others), JOIN_SECONDS)
        from_first("heartbeat", lambda: address)
        peers = accept()
    return Heartbeat(me, peers, timeout)


def _end(heartbeat: Heartbeat, error: BaseException) -> None:
    """Print the error, send it to the others, and exit without JAX's shutdown, which would wait for them."""
    known = isinstance(error, UserError | FloatingPointError | KeyboardInterrupt)
    if not known:
        heartbeat.wait_for_end(2)
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(message.split())[:400]
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    print(f"ringrl: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    heartbeat.fail(message)
    clean_up()
    os._exit(2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1)
