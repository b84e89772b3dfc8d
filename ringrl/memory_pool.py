"""Temporaries of compiled programs on CPUs stay with the process between steps.

At every call of a program, XLA's CPU client takes its temporaries from the C library. glibc asks the kernel for arrays
above 32 MiB, and for smaller ones in threads, each time anew: all pages are zeroed and mapped in again, a page fault
for every 4 KiB. A small model's step spent a quarter of its time so (docs/training.md).
"""

import ctypes
import os
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`, from malloc.h."""

_CHOSEN_BY_USER = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX", "LD_PRELOAD")

_ACCELERATORS = ("nvidia[0-9]*", "accel*", "kfd")
"""Device files, below /dev, of GPUs and TPUs."""


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, for the rest of the process; whether it does.

    Call it before the process has a second thread, and so before JAX's first use: how many arenas malloc may have is
    settled when a second thread first asks for memory, and each thread keeps its own. `ringrl train` and `ringrl demo`
    begin with it; a program of your own may.

    Nothing is changed where the user has chosen how malloc works, by a variable of glibc's or another library; where
    there is no glibc; nor where there is an accelerator, whose programs have their temporaries there. What is
    freed in small pieces between others is kept as well, so the process may be larger than at its largest without it.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _CHOSEN_BY_USER):
        return False
    if any(any(Path("/dev").glob(name)) for name in _ACCELERATORS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1}  # never; none; one for all threads
    return all([mallopt(name, value) for name, value in settings.items()])
