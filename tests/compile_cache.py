"""JAX's persistent compile cache for tests, kept between runs: most of the time of a first run goes into compiling.

It is in the user's cache directory, or in RINGRL_TEST_CACHE; deleting it is always safe. JAX names an entry by the
program, the compiler's version and its options, so a changed program misses its old entry and compiles.
"""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

LIMIT = 2**30  # bytes


def root() -> Path:
    """RINGRL_TEST_CACHE, or `ringrl/tests` in the user's cache directory."""
    chosen = os.environ.get("RINGRL_TEST_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringrl" / "tests"


def folder() -> Path:
    """The folder of this JAX on this processor: a compiled program uses instructions that others may not have."""
    return root() / f"jax-{version('jax')}-jaxlib-{version('jaxlib')}-{_processor()}"


def environment() -> dict[str, str]:
    """The environment variables that make JAX keep every program, however small.

    A process that is killed while it writes leaves a broken entry, which others may read. JAX then warns and compiles;
    tests take warnings for errors and look at what processes print, so PYTHONWARNINGS drops these.
    """
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(folder()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # The size is bounded by `prune`: JAX's own bound locks and lists the whole folder for each entry it writes.
        "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
        "JAX_ENABLE_COMPILATION_CACHE": "1",
    }
    quiet = [f"ignore:Error {verb} persistent compilation cache entry:UserWarning" for verb in ("reading", "writing")]
    present = [text for text in os.environ.get("PYTHONWARNINGS", "").split(",") if text and text not in quiet]
    return settings | {"PYTHONWARNINGS": ",".join([*present, *quiet])}


def prune(limit: int = LIMIT) -> None:
    """Deletes the entries of every version that were not read for longest, until half of `limit` bytes are left.

    Nothing is deleted while the cache is smaller than `limit`.
    """
    found = []
    for path in root().glob("jax-*/*-cache"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another run prunes too
            continue
        found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    size = sum(size for _, size, _ in found)
    if size <= limit:
        return
    for _, bytes_, path in sorted(found):
        if size <= limit // 2:
            break
        path.unlink(missing_ok=True)
        size -= bytes_


def _processor() -> str:
    """A short name of the processor and its instructions, for a home directory may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *(wanted or lines)]).encode()).hexdigest()[:12]
