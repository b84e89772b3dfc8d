"""The real CUDA compiler, on machines without a GPU: one device of a chip, and what it made of a program's kernels."""

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

needs_cuda_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason='the CUDA compiler is not installed: pip install --no-deps "jax-cuda13-pjrt==0.10.2" '
    '"jax-cuda13-plugin==0.10.2", of the version of jax',
)

# cores, FP32 units a core, shared memory a core and a block, L2, bytes/s, GHz, bytes, compute capability, name
_CHIPS = {
    "a100": (108, 64, 167936, 166912, 41943040, 2039e9, 1.41, 85899345920, "8.0", "NVIDIA A100-SXM4-80GB"),
    "h100": (132, 128, 233472, 232448, 52428800, 3352.32e9, 1.98, 84942979072, "9.0a", "NVIDIA H100 80GB HBM3"),
    "b200": (148, 128, 233472, 232448, 132644864, 7672.32e9, 1.965, 191514411008, "10.0a", "NVIDIA B200"),
}


def _target(chip: str) -> str:
    """A GpuTargetConfig in text form."""
    cores, units, shared, optin, l2, bandwidth, clock, memory, capability, name = _CHIPS[chip]
    major, minor = (int(re.sub(r"\D", "", part)) for part in capability.split("."))
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {units} l2_cache_size: {l2} clock_rate_ghz: {clock}
  memory_bandwidth: {int(bandwidth)} device_memory_size: {memory}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  device_vendor: "NVIDIA Corporation" name: "{name}" platform_version: "Compute Capability {capability}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


@cache
def cuda_devices(chip: str, count: int) -> tuple:
    """`count` GPUs of one host."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=_target(chip), topology=f"1x1x{count}")
    return tuple(topology.devices)


@dataclass(frozen=True)
class CompiledKernels:
    """The attention kernels of a program: threads and bytes of shared memory by name, and all PTX."""

    launches: dict[str, tuple[int, int]]
    ptx: str


def compile_kernels(lowered: jax.stages.Lowered, folder: Path) -> CompiledKernels:
    """Compile to machine code; an error where a kernel spills registers, or takes more shared memory than there is."""
    options = {"xla_dump_to": str(folder), "xla_gpu_fail_ptx_compilation_on_register_spilling": True}
    lowered.compile(compiler_options=options)
    (thunks,) = folder.glob("*thunk_sequence.txt")
    pattern = r" (attention_\w+) grid: \S+, \S+, \S+ threads: \[(\d+), .*shared_memory: (\d+) bytes"
    launches = {name: (int(threads), int(shared)) for name, threads, shared in re.findall(pattern, thunks.read_text())}
    return CompiledKernels(launches, "".join(path.read_text() for path in sorted(folder.glob("*.ptx"))))
