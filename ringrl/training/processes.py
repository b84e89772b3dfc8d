"""Many processes, one run: how they find each other, agree, divide the data, and end together."""

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

# The coordination service's key-value store has no public name; Orbax, too, takes it from here.
from jax._src.distributed import global_state
from jax.sharding import Mesh
from jaxtyping import Bool, Int64

from ringrl.errors import UserError
from ringrl.training import heartbeat

T = TypeVar("T")

JOIN_SECONDS = 300.0
AGREE_SECONDS = 3600  # process 0 may have to measure a large store meanwhile


@contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, silence: float = 60.0
) -> Iterator[None]:
    """Join the other processes of this run, if there are any; JAX must not have touched a device yet.

    With no arguments they are looked for where Slurm, Open MPI, Kubernetes or a TPU pod announces them; else this is
    a run of one process, and nothing happens. `processes=1` is a run of one process whatever is announced.

    An exception inside ends this process after telling the others, which end too. A process that is killed ends the
    others as soon as its sockets close; one that says nothing for `silence` seconds is taken for dead.

    Args:
        coordinator: host:port of process 0, a port that is free there.
        processes: how many there are.
        process: which of them this is, from 0.
        silence: seconds.

    Raises:
        UserError: the arguments are incomplete, or the others cannot be reached.
    """
    if not 1 <= silence < math.inf:
        raise UserError(f"--silence {silence}: give seconds, 1 or more")
    if not _initialize(coordinator, processes, process, silence):
        yield
        return
    line = _hold_hands(silence)
    try:
        yield
    except BaseException as error:
        _end(line, error)
    line.close()


def is_first() -> bool:
    """Whether this is process 0: the one that prints, and writes what is not sharded."""
    return global_state.process_id == 0


def from_first(name: str, compute: Callable[[], T]) -> T:
    """What `compute` gives in process 0, in all processes; alone, simply what it gives.

    Args:
        name: different for every call in the life of a process.
        compute: called in process 0 only; its result must survive JSON.
    """
    if global_state.num_processes == 1:
        return compute()
    client: Any = global_state.client
    if is_first():
        client.key_value_set(f"ringrl/{name}", json.dumps(compute()))
    return json.loads(client.blocking_key_value_get(f"ringrl/{name}", AGREE_SECONDS * 1000))


@dataclass(frozen=True, eq=False)
class LocalShard:
    """What of every batch the devices of this process hold: these rows, and of each of them these places.

    Places are counted in ring order. On a slice of TPUs a host's chips are neighbours, but not on the ring, so what it
    holds of a row may be several pieces.
    """

    rows: Int64[np.ndarray, " rows"]  # ascending
    places: Int64[np.ndarray, " places"]  # ascending
    shape: tuple[int, int]  # rows and steps of the whole batch


def local_shard(mesh: Mesh, rows: int, steps: int) -> LocalShard:
    """What this process's devices hold of a batch of so many rows and steps.

    Raises:
        UserError: they hold none, or not the same places of every row.
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
            f"mesh {sizes}: the devices of process {me} hold other places of one row than of another; choose "
            f"data x fsdp a multiple of the number of processes ({jax.process_count()}), or else a divisor of it"
        )
    shape = owners.shape[0] * owners.shape[1], owners.shape[3] * owners.shape[4]
    part = lambda n, k, mine: np.arange(n, dtype=np.int64).reshape(k, -1)[mine].reshape(-1)  # noqa: E731
    return LocalShard(part(rows, shape[0], parts[0]), part(steps, shape[1], parts[1]), (rows, steps))


def find_parts(
    owners: Int64[np.ndarray, "data fsdp tensor seq heads"], me: int
) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " places"]] | None:
    """Which parts of the rows and of the steps are process `me`'s, on a mesh of devices that belong to `owners`.

    None where they are not all combinations of some rows and some steps.
    """
    data, fsdp, tensor, seq, heads = owners.shape
    mine = (owners.transpose(0, 1, 3, 4, 2).reshape(data * fsdp, seq * heads, tensor) == me).any(axis=2)
    rows, steps = mine.any(axis=1), mine.any(axis=0)
    return (rows, steps) if mine.sum() == rows.sum() * steps.sum() else None


def _initialize(coordinator: str | None, processes: int | None, process: int | None, silence: float) -> bool:
    """Whether this is one of many processes; JAX then knows the others."""
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
        heartbeat.wait_for_host(coordinator, JOIN_SECONDS)
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM and do nothing about it
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=int(JOIN_SECONDS),
            heartbeat_timeout_seconds=int(2 * silence) + 10,  # the lifeline speaks first, and more clearly
            shutdown_timeout_seconds=60,
        )
    except Exception as error:
        raise UserError(
            f"cannot join the other processes ({launcher or coordinator}): {' '.join(str(error).split())[:300]}; "
            "give --coordinator, --processes and --process, or --processes 1 to train alone"
        ) from error
    return global_state.num_processes > 1


def _launcher() -> str | None:
    """What has started several processes and tells JAX of them; None on a machine of one's own."""
    env = os.environ
    if "SLURM_STEP_NODELIST" in env and env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")) != "1":
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in env and env.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    if env.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu") and _on_tpu():
        return "TPU pod"
    return None


def _on_tpu() -> bool:
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _hold_hands(silence: float) -> heartbeat.Heartbeat:
    """Connect every process with process 0."""
    me, count = global_state.process_id, global_state.num_processes
    if me:
        peers = heartbeat.call(from_first("lifeline", str), me, JOIN_SECONDS)
    else:
        host = (global_state.coordinator_address or "localhost").rpartition(":")[0].strip("[]")
        address, welcome = heartbeat.invite(host, count - 1, JOIN_SECONDS)
        from_first("lifeline", lambda: address)
        peers = welcome()
    return heartbeat.Heartbeat(me, peers, silence)


def _end(line: heartbeat.Heartbeat, error: BaseException) -> None:
    """Tell the others why, say it here, and leave without JAX's farewell, which would wait for them."""
    known = isinstance(error, UserError | FloatingPointError | KeyboardInterrupt)
    if not known:
        line.wait_for_news(2)
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(message.split())[:400]
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    print(f"ringrl: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    line.fail(message)
    os._exit(2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1)
