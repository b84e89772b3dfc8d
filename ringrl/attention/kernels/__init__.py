"""The local step on each platform, and which one is taken.

Kernels are imported where they are used: Pallas alone takes a second to import, and a CPU needs none of it.
"""

from types import ModuleType
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ringrl.attention.block_attention import group_size
from ringrl.attention.kernels.hardware_steps import GpuStep, NativeStep, TpuStep
from ringrl.attention.kernels.xla import XlaStep
from ringrl.attention.kv_cache import Stored
from ringrl.attention.local_step import LocalStep, Sizes
from ringrl.attention.tiling import Cut, default_blocks, fit_block

Kernel = Literal["xla", "native", "tpu", "gpu"]
"""Implementations of the local step: `xla` runs everywhere; `native` is C++ for CPUs, compiled when it is first used;
`tpu` is Pallas; `gpu` is cuDNN."""


CacheKernel = Literal["xla", "native", "tpu"]
"""Implementations of attention to a KV cache: modules of two functions, `write` and `attend` (see `xla_cache`)."""

_MAX_TPU_HEAD_DIM = 256


def make_step(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    *,
    scale: float | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    runs: int = 1,
    key_shards: int = 1,
    segmented: bool = False,
    kernel: Kernel | None = None,
) -> LocalStep:
    """The local step for queries and keys of these shapes.

    Args:
        q: queries.
        k: this device's keys.
        scale: multiplies the scores; None is head_dim ** -0.5.
        block_q: longest block of queries, where the kernel lets one choose (`xla`, `tpu`).
        block_k: longest block of keys.
        runs: equal stretches of a device's tokens within which positions grow by a constant step.
        key_shards: devices whose keys are on this device at once.
        segmented: whether there are segment ids.
        kernel: which implementation; None takes the best that the platform has.

    Raises:
        ValueError: heads is not a multiple of kv_heads, a block size is below 1, or `kernel` cannot be used
            here.
    """
    name = choose_kernel(q, k, segmented) if kernel is None else _check(kernel, q, k, segmented)
    (default_q, default_k), alignment = default_blocks(q.shape[0], q.shape[2]), None
    if name == "tpu":
        from ringrl.attention.kernels import tpu_blocks

        (default_q, default_k), alignment = tpu_blocks.default_blocks(q.shape[-1], q.dtype.itemsize), tpu_blocks.LANES
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
    name = {"cpu": "native", "tpu": "tpu"}.get(here, "xla") if kernel is None else kernel
    if name == "xla":
        return xla_cache
    if name == "native":
        module, reason = native_cache, native_cache.missing(q, stored, here)
    else:
        from ringrl.attention.kernels import tpu_cache

        module, reason = tpu_cache, _missing("tpu", q, q, True) or tpu_cache.missing(q, stored)
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


def choose_kernel(q: Array, k: Array, segmented: bool) -> Kernel:
    """The fastest implementation that the platform has for these arrays."""
    best: dict[str, Kernel] = {"cpu": "native", "tpu": "tpu", "gpu": "gpu"}
    name = best.get(platform(), "xla")
    return "xla" if _missing(name, q, k, segmented) else name


def _check(kernel: Kernel, q: Array, k: Array, segmented: bool) -> Kernel:
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel {kernel!r} is unknown: choose one of {', '.join(get_args(Kernel))}")
    if reason := _missing(kernel, q, k, segmented):
        raise ValueError(f"kernel {kernel!r} cannot be used here: {reason}")
    return kernel


def _missing(kernel: Kernel, q: Array, k: Array, segmented: bool) -> str | None:
    """Why this kernel cannot take the step here; None where it can."""
    if kernel == "gpu":
        from ringrl.attention.kernels import gpu

        return gpu.supported(q, k, segmented)
    if kernel == "xla":
        return None
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it takes float32 and bfloat16, not {q.dtype}"
    wanted = {"native": "cpu", "tpu": "tpu"}[kernel]
    if (here := platform()) != wanted:
        return f"it is for {wanted}, this is {here}"
    if kernel == "tpu" and (kind := _device_kind()) in ("TPU v2", "TPU v3"):
        return f"Mosaic has no bfloat16 products for {kind}"
    if kernel == "tpu" and (q.shape[-1] > _MAX_TPU_HEAD_DIM or (q.shape[-1] > 128 and q.shape[-1] % 128)):
        return f"it takes heads of up to 128 numbers, or of {_MAX_TPU_HEAD_DIM}, not {q.shape[-1]}"
    from ringrl.attention.kernels import native

    if kernel == "native" and not native.available():
        return native.NO_COMPILER
    return None
