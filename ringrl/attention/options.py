"""Options of the compiler with which a ring's transfers run behind its computation."""

_OPTIONS: dict[str, dict[str, str]] = {
    # By default XLA may start a scanned ring's transfers before or after a Pallas kernel: with
    # libtpu 0.0.42 the forward pass waits for all of them on v5p, the backward pass for some on v4.
    "tpu": {"xla_tpu_enable_all_experimental_scheduler_features": "true"},
    # By default XLA has one transfer under way at a time on GPUs. Backward a hop sends keys, values and the sums of
    # both: with 4 attention waits for none (jax 0.10.2; tests/planner/test_gpu_overlap.py).
    "gpu": {"xla_gpu_experimental_parallel_collective_overlap_limit": "4"},
}


def compiler_options(platform: str) -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=...)` around `ring_attention`; ringrl's own training step sets them.

    Args:
        platform: of the devices, such as `mesh.devices.flat[0].platform`: `tpu`, `cpu` or `gpu`.
    """
    return dict(_OPTIONS.get("gpu" if platform == "cuda" else platform, {}))
