"""The most that a step could reach of its devices' peak, by the roofline. A bound, never a measurement."""

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from ringrl.accelerators import Accelerator
from ringrl.planner.schedule import Transfer


@dataclass(frozen=True)
class Traffic:
    """What a device sends in one step, bytes."""

    ring: int  # keys, values and their gradients from device to device
    ring_waited: int  # of these, what no matrix product runs behind
    other: int  # gathered parameters, scattered and summed gradients, exchanged heads
    other_waited: int


def read_traffic(transfers: list[Transfer]) -> Traffic:
    """Sums over `ringrl.planner.schedule.read_transfers`."""
    sums = [0, 0, 0, 0]
    for transfer in transfers:
        kind = 0 if transfer.operation.endswith("ppermute") else 2
        size = transfer.sent_bytes * transfer.times
        sums[kind] += size
        sums[kind + 1] += 0 if transfer.hidden_by else size
    return Traffic(*sums)


def ring_bandwidth(accelerator: Accelerator, mesh: Mesh) -> float:
    """Bytes/s of the slowest hop of the mesh's rings, one way: where any leads to another host, all wait for it.

    Only devices with a `network_bandwidth` have hosts in this sense: a TPU's links lead to other hosts too.
    """
    hosts = np.vectorize(lambda device: device.process_index)(mesh.devices)
    leaves = hosts != np.roll(hosts, 1, mesh.axis_names.index("seq"))
    network = accelerator.network_bandwidth
    return network if network is not None and leaves.any() else accelerator.link_bandwidth


def mfu_bound(
    accelerator: Accelerator,
    *,
    useful: float,
    executed: float,
    traffic: Traffic,
    hbm_bytes: float,
    ring: float | None = None,
) -> tuple[float, str]:
    """Upper bound of model FLOPs utilisation, 0 to 1, and what sets it (the roofline; Williams et al. 2009).

        bound = useful / peak / max(compute + waits, ring bytes / link, other bytes / links, HBM bytes / HBM bandwidth)

    A step takes at least as long as its matrix products at the peak and the transfers that they wait for, as the ring
    needs on one link in one direction, as all other traffic needs on all links, and as HBM needs for what must pass.

    Args:
        accelerator: the device.
        useful: model FLOPs of a device's part of a step.
        executed: FLOPs that it executes.
        traffic: bytes that it sends.
        hbm_bytes: bytes that it reads and writes at least.
        ring: bytes/s of the ring's slowest hop (`ring_bandwidth`); None: of a link.
    """
    link = accelerator.link_bandwidth if ring is None else ring
    links = accelerator.link_bandwidth * accelerator.links
    computing = executed / accelerator.flops
    waiting = traffic.ring_waited / link + traffic.other_waited / links
    seconds = {
        "computation and the transfers it waits for" if waiting > 0.01 * computing else "computation": computing
        + waiting,
        "the ring's transfers": traffic.ring / link,
        "other transfers": traffic.other / links,
        "HBM": hbm_bytes / accelerator.hbm_bandwidth,
    }
    slowest = max(seconds, key=lambda name: seconds[name])
    return useful / accelerator.flops / seconds[slowest], slowest
