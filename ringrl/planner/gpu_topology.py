"""GPUs by name, as XLA's CUDA compiler describes them; no GPU, driver or toolkit is needed or used.

The compiler is the real one, and so are the buffers that it assigns and the schedule that it makes. Three things are
not: it compares no kernels by running them (autotuning), it does not check cuDNN's calls, and it compiles a program
that is too large for the memory all the same. Whether one fits follows from the buffers: `memory_bytes`.
"""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from ringrl.errors import UserError

MEMORY_SHARE = 0.8
"""Of a GPU's memory, what XLA's scheduler plans with; the rest is for the CUDA context, NCCL and fragments."""

_MOST = {"gb200": 72}
_MOST_BY_DEFAULT = 8
"""GPUs that one NVLink switch joins: of a DGX or HGX host, and of an NVL72 rack."""

EXAMPLES = "h100:8, h100:4x8 (hosts x GPUs), a100:8, gb200:1x72"


@dataclass(frozen=True)
class _Gpu:
    """What XLA's own specification of a GPU says of it (`xla/backends/gpu/target_config/specs`)."""

    name: str  # that CUDA gives it, by which `ringrl.accelerators` knows it
    capability: str
    cores: int
    fpus: int  # float32 units a core
    shared: int  # bytes of shared memory a core; a block may have 1 KiB less
    l2: int
    bandwidth: float  # bytes/s
    clock: float  # GHz
    memory: int  # bytes


_HOPPER, _BLACKWELL = ("9.0a", 132, 128, 233472, 52428800), ("10.0a", 148, 128, 233472, 132644864)
_AMPERE = ("8.0", 108, 64, 167936, 41943040)
_GPUS = {
    "a100": _Gpu("NVIDIA A100-SXM4-80GB", *_AMPERE, 2039e9, 1.41, 85899345920),
    "a100_40gb": _Gpu("NVIDIA A100-SXM4-40GB", *_AMPERE, 1555.2e9, 1.41, 42481549312),
    "h100": _Gpu("NVIDIA H100 80GB HBM3", *_HOPPER, 3352.32e9, 1.98, 84942979072),
    "h200": _Gpu("NVIDIA H200", *_HOPPER, 4800e9, 1.98, 150754820096),
    "b200": _Gpu("NVIDIA B200", *_BLACKWELL, 7672.32e9, 1.965, 191514411008),
    "gb200": _Gpu("NVIDIA GB200", *_BLACKWELL, 7672.32e9, 1.965, 191514411008),
}


def is_gpu(name: str) -> bool:
    """Whether a topology's name is one of GPUs."""
    return name.partition(":")[0] in _GPUS


def known_gpus() -> tuple[str, ...]:
    """The names before the colon."""
    return tuple(_GPUS)


def find_gpus(name: str) -> list[Any]:
    """The devices of `name`, such as h100:8 or h100:4x8 (hosts x GPUs); a host is what one NVLink switch joins.

    Raises:
        UserError: the name is none, there are no such hosts, or the CUDA compiler is not installed.
    """
    hosts, gpus = _shape(name)
    if importlib.util.find_spec("jax_cuda13_plugin") is None and importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise UserError('planning for GPUs needs XLA\'s CUDA compiler: pip install "ringrl[plan-gpu]" (Linux)')
    config = _target(_GPUS[name.partition(":")[0]])
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x{hosts}x{gpus}")
    except NotImplementedError as error:  # its plug-in looked for cuDNN, and ended
        raise UserError(
            f"topology {name}: XLA's CUDA compiler did not start; without a GPU, set JAX_PLATFORMS=cpu before JAX "
            "starts"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"topology {name}: XLA's CUDA compiler does not take it: {reason}") from error
    return list(found.devices)


def memory_bytes(device: Any) -> int:
    """Bytes that a program may fill: `MEMORY_SHARE` of the device's. Raises KeyError for one that is not here."""
    return int(MEMORY_SHARE * {gpu.name: gpu.memory for gpu in _GPUS.values()}[device.device_kind])


def _shape(name: str) -> tuple[int, int]:
    """Hosts and GPUs of each."""
    found = re.fullmatch(r"(\w+):(?:(\d+)x)?(\d+)", name)
    if found is None:
        raise UserError(f"topology `{name}`: write a GPU, and hosts x GPUs, for example {EXAMPLES}")
    hosts, gpus, most = int(found[2] or 1), int(found[3]), _MOST.get(found[1], _MOST_BY_DEFAULT)
    if min(hosts, gpus) < 1 or gpus > most:
        more = f"; write {gpus // most}x{most} for {gpus}" if hosts == 1 and gpus % most == 0 and gpus else ""
        raise UserError(f"topology {name} does not exist: NVLink joins 1 to {most} {found[1]}{more}")
    return hosts, gpus


def _target(gpu: _Gpu) -> str:
    """A GpuTargetConfig of XLA in text form."""
    major, minor = (int(re.sub(r"\D", "", part)) for part in gpu.capability.split("."))
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared} shared_memory_per_block_optin: {gpu.shared - 1024}
  core_count: {gpu.cores} fpus_per_core: {gpu.fpus} l2_cache_size: {gpu.l2} clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {int(gpu.bandwidth)} device_memory_size: {gpu.memory}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  device_vendor: "NVIDIA Corporation" name: "{gpu.name}" platform_version: "Compute Capability {gpu.capability}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
"""
