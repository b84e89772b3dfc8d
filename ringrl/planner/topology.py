"""Slices of TPUs and hosts of GPUs by name, as their real compilers describe them."""

from typing import Any

from ringrl.errors import UserError
from ringrl.planner import gpu_topology, tpu_topology


def find_devices(name: str) -> list[Any]:
    """The devices of `name`, such as v5e:2x4 or h100:8, for a mesh to compile for.

    Raises:
        UserError: there is no such topology (the message lists some), or the compiler is not installed.
    """
    if gpu_topology.is_gpu(name):
        return gpu_topology.find_gpus(name)
    generation = name.partition(":")[0]
    if generation not in tpu_topology.GENERATIONS:
        known = ", ".join((*tpu_topology.GENERATIONS, *gpu_topology.known_gpus()))
        raise UserError(
            f"topology `{name}`: no TPU or GPU is called {generation!r} (known: {known}); write generation:chips, for "
            f"example {tpu_topology.EXAMPLES}, {gpu_topology.EXAMPLES}"
        )
    return tpu_topology.find_slice(name)


def device_hbm_bytes(device: Any) -> int:
    """Bytes that a program may fill on a device: a TPU's as its compiler says, four fifths of a GPU's."""
    return gpu_topology.memory_bytes(device) if device.platform == "gpu" else tpu_topology.hbm_bytes(device)
