"""The local step on each platform, and which one is taken.

Kernels are imported where they are used: Pallas alone takes a second to import, and a CPU needs none of it.
"""

from types import ModuleType
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ringrl.attention.block_attention import group_size
from ringrl.attention.kernels.gpu_tiles import BLOCK
from ringrl.attention.kernels.hardware_steps import GpuStep, NativeStep, TpuStep
from ringrl.attention.kernels.xla import XlaStep
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import LocalStep, Sizes
from ringrl.attention.tiling import Cut, default_blocks, fit_block

Kernel = Literal["xla", "native", "tpu", "gpu"]
"""Implementations of the local step: `xla` runs everywhere; `native` is C++ for CPUs, compiled when it is first used;
`tpu` is Pallas for TPUs, `gpu` Pallas for NVIDIA GPUs."""


CacheKernel = Literal["xla", "native", "tpu", "gpu"]
"""Implementations of attention to a KV cache: modules of two functions, `write` and `attend` (see `xla_cache`)."""

_PLATFORMS = {"native": "cpu", "tpu": "tpu", "gpu": "gpu"}
_BEST: dict[str, Literal["xla", "native", "tpu", "gpu"]] = {"cpu": "native", "tpu": "tpu", "gpu": "gpu"}

_MAX_HEAD_DIM = 256
"""Of the kernels for TPUs and GPUs."""

_OLDEST_CAPABILITY = 8.0
"""Of NVIDIA's GPUs: Ampere, the first whose matrix units take bfloat16."""


def make_step(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    runs: int = 1,
    key_shards: int = 1,
    kernel: Kernel | None = None,
) -> LocalStep:
    """The local step for queries and keys of these shapes.

    Args:
        q: queries.
        k: this device's keys.
        scale: multiplies the scores; None is head_dim ** -0.5.
        block_q: longest block of queries. `native` chooses its own; `gpu` too, but pads to multiples of this.
        block_k: longest block of keys.
        runs: equal stretches of a device's tokens within which positions grow by a constant step.
        key_shards: devices whose keys are on this device at once.
        kernel: which implementation; None takes the best that the platform has.

    Raises:
        ValueError: heads is not a multiple of kv_heads, a block size is below 1, or `kernel` cannot be used
            here.
    """
    name = choose_kernel(q) if kernel is None else _check(kernel, q)
    (default_q, default_k), alignment = default_blocks(q.shape[0], q.shape[2]), None
    if name == "tpu":
        from ringrl.attention.kernels import tpu_blocks, tpu_tiles

        q_run, k_run = q.shape[1] // runs, k.shape[1] // runs
        default_q, default_k = tpu_tiles.choose_blocks(q_run, k_run, q.shape[-1], q.dtype.itemsize)
        alignment = tpu_blocks.LANES
    elif name == "gpu":
        default_q = default_k = alignment = BLOCK
    sizes = make_sizes(
        q,
        k,
        scale=scale,
        block_q=default_q if block_q is None else block_q,
        block_k=default_k if block_k is None else block_k,
        runs=runs,
        key_shards=key_shards,
        alignment=alignment,
    )
    if name == "native":
        return NativeStep(sizes, sharers=max(jax.sharding.get_abstract_mesh().size, 1))
    return {"xla": XlaStep, "tpu": TpuStep, "gpu": GpuStep}[name](sizes)


def make_sizes(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float | None,
    block_q: int,
    block_k: int,
    runs: int = 1,
    key_shards: int = 1,
    alignment: int | None = None,
) -> Sizes:
    """What is static about a step; arguments and errors are those of `make_step`, `alignment` that of `fit_block`."""
    length, keys = q.shape[1], k.shape[1]
    group_size(q.shape[2], k.shape[2])  # raises where the heads do not divide
    return Sizes(
        q=Cut(length, runs, fit_block(length // runs, block_q, alignment)),
        k=Cut(keys * key_shards, runs * key_shards, fit_block(keys // runs, block_k, alignment)),
        kv_heads=k.shape[2],
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
    )


def cache_kernel(
    q: Float[Array, "batch tokens heads head_dim"], stored: Stored, kernel: CacheKernel | None
) -> ModuleType:
    """The module that attends to a KV cache; `kernel` None takes the best that the platform has.

    Raises ValueError where `kernel` cannot be used here.
    """
    from ringrl.attention.kernels import native_cache, xla_cache

    if kernel not in (None, *get_args(CacheKernel)):
        raise ValueError(f"kernel {kernel!r} is unknown: choose one of {', '.join(get_args(CacheKernel))}")
    here = platform()
    name = _BEST.get(here, "xla") if kernel is None else kernel
    if name == "xla":
        return xla_cache
    if name == "native":
        module, reason = native_cache, native_cache.missing(q, stored, here)
    elif name == "tpu":
        from ringrl.attention.kernels import tpu_cache

        module, reason = tpu_cache, _missing("tpu", q) or tpu_cache.missing(q, stored)
    else:
        from ringrl.attention.kernels import gpu_cache

        module, reason = gpu_cache, _missing("gpu", q) or gpu_cache.missing(q, stored)
    if reason and kernel is not None:
        raise ValueError(f"kernel {kernel!r} cannot be used here: {reason}")
    return xla_cache if reason else module


def platform() -> str:
    """`cpu`, `tpu` or `gpu`: inside `jax.shard_map` the mesh's, whose devices may be of another machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def _device_kind() -> str:
    """The device's name, such as `TPU v3`, where `platform` looks for it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def choose_kernel(q: Array) -> Kernel:
    """The fastest implementation that the platform has for queries like these."""
    name = _BEST.get(platform(), "xla")
    return "xla" if _missing(name, q) else name


def _check(kernel: Kernel, q: Array) -> Kernel:
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel {kernel!r} is unknown: choose one of {', '.join(get_args(Kernel))}")
    if reason := _missing(kernel, q):
        raise ValueError(f"kernel {kernel!r} cannot be used here: {reason}")
    return kernel


def _missing(kernel: Kernel, q: Array) -> str | None:
    """Why this kernel cannot take the step here; None where it can."""
    if kernel == "xla":
        return None
    if (here := platform()) != (wanted := _PLATFORMS[kernel]):
        return f"it is for {wanted}, this is {here}"
    if q.dtype not in (jnp.float32, jnp.bfloat16) and not (kernel == "gpu" and q.dtype == jnp.float16):
        return f"it takes float32{', float16' if kernel == 'gpu' else ''} and bfloat16, not {q.dtype}"
    if kernel == "tpu":
        return _missing_on_tpu(q.shape[-1])
    if kernel == "gpu":
        return _missing_on_gpu(q.shape[-1])
    from ringrl.attention.kernels import native

    return None if native.available() else native.NO_COMPILER


def _missing_on_tpu(head_dim: int) -> str | None:
    if (kind := _device_kind()) in ("TPU v2", "TPU v3"):
        return f"Mosaic has no bfloat16 products for {kind}"
    if head_dim > _MAX_HEAD_DIM or (head_dim > 128 and head_dim % 128):
        return f"it takes heads of up to 128 numbers, or of {_MAX_HEAD_DIM}, not {head_dim}"
    return None


def _missing_on_gpu(head_dim: int) -> str | None:
    if head_dim > _MAX_HEAD_DIM:
        return f"it takes heads of up to {_MAX_HEAD_DIM} numbers, not {head_dim}"
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None) if device.device_kind == _device_kind() else None
    if capability is not None and not str(capability).replace(".", "", 1).isdecimal():
        return f"it is for NVIDIA's GPUs, {device.device_kind} is of another maker"
    if capability is not None and float(capability) < _OLDEST_CAPABILITY:
        return f"it needs compute capability {_OLDEST_CAPABILITY} or later, {device.device_kind} has {capability}"
    return None
