"""What the real CUDA compiler, on machines without a GPU, made of a program's kernels."""

import re
from dataclasses import dataclass
from pathlib import Path

import jax

from tests.planner.compilers import optimised


@dataclass(frozen=True)
class CompiledKernels:
    """A compiled program, the threads and bytes of shared memory of its attention kernels by name, and all PTX."""

    launches: dict[str, tuple[int, int]]
    ptx: str
    compiled: jax.stages.Compiled


def compile_kernels(lowered: jax.stages.Lowered, folder: Path) -> CompiledKernels:
    """Compile to machine code; an error where a kernel spills registers, or takes more shared memory than there is."""
    options = {"xla_dump_to": str(folder), "xla_gpu_fail_ptx_compilation_on_register_spilling": True}
    with optimised():
        compiled = lowered.compile(compiler_options=options)
    (thunks,) = folder.glob("*thunk_sequence.txt")
    pattern = r" ((?:attention|cache)_\w+) grid: \S+, \S+, \S+ threads: \[(\d+), .*shared_memory: (\d+) bytes"
    launches = {name: (int(threads), int(shared)) for name, threads, shared in re.findall(pattern, thunks.read_text())}
    return CompiledKernels(launches, "".join(path.read_text() for path in sorted(folder.glob("*.ptx"))), compiled)
