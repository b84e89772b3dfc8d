"""Compiling the native CPU kernel, and the library of earlier starts, which is only loaded if it is what was compiled.

The library is in the user's cache folder. Its name is a fingerprint of all that it depends on (source, compiler,
jaxlib, processor) and its own hash: a damaged, empty or foreign file is not it, and is compiled anew.
"""

import atexit
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from ringrl.files import alone_in, atomic_file

_FOLDER = Path(__file__).parent
_SOURCES = (
    "native.cc",
    "native_forward.h",
    "native_backward.h",
    "native_cache.h",
    "native_cache_block.h",
    "native_problem.h",
    "native_tiles.h",
)
# GCC takes -march=native on ARM too, but Clang there knows only -mcpu=native.
_NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
# Contraction makes one fused instruction of x * y + z; it is off by default in some compilers' ISO mode.
_FLAGS = ("-O3", "-std=c++17", _NATIVE, "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-w")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

_log = logging.getLogger(__name__)


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler; None if there is none. ValueError: CXX is badly quoted."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "c++"] if importlib.util.find_spec("ziglang") else None


def build(compiler: list[str]) -> Path:
    """The path of the library, compiled unless the cache has it. Processes that want the same one wait for the first.

    Raises:
        OSError, SubprocessError: it cannot be compiled.
        ImportError: on Windows.
    """
    fingerprint = _fingerprint(compiler)
    folder = _own_folder()
    found = _find(folder, fingerprint)
    if found is not None:
        return found
    with alone_in(folder, f".{fingerprint}.lock", wait=True):
        found = _find(folder, fingerprint)
        return found if found is not None else _compile(compiler, folder, fingerprint)


def _compile(compiler: list[str], folder: Path, fingerprint: str) -> Path:
    for bad in folder.glob(f"{fingerprint}*.so"):
        bad.unlink(missing_ok=True)
    command = [*compiler, *_FLAGS, "-I", jax.ffi.include_dir(), str(_FOLDER / _SOURCES[0]), "-o"]
    compiled = folder / f"{fingerprint}.so"
    with atomic_file(compiled) as unfinished:
        subprocess.run([*command, str(unfinished)], check=True, capture_output=True, text=True, timeout=600)
        unfinished.chmod(0o755)
    path = folder / f"{fingerprint}-{_hash(compiled)}.so"
    os.replace(compiled, path)
    return path


def _find(folder: Path, fingerprint: str) -> Path | None:
    """A library that is what this user has compiled, and that nobody else may write."""
    for path in sorted(folder.glob(f"{fingerprint}-*.so")):
        about = path.lstat()
        mine = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & _OTHERS_MAY_WRITE
        if mine and path.name == f"{fingerprint}-{_hash(path)}.so":
            return path
    return None


def _own_folder() -> Path:
    """A folder in which only this user can write: the cache's or, where that is none, one removed at the end."""
    try:
        folder = _cache() / "ringrl"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        if about.st_uid != os.geteuid():
            raise PermissionError(f"{folder} is of another user")
        if about.st_mode & _OTHERS_MAY_WRITE:
            folder.chmod(stat.S_IMODE(about.st_mode) & ~_OTHERS_MAY_WRITE)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, KeyError) as error:
        _log.warning("the native attention kernel is compiled for this start alone: %s; set XDG_CACHE_HOME", error)
    folder = Path(tempfile.mkdtemp(prefix="ringrl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _cache() -> Path:
    """The user's cache folder; a path that is not absolute would be another in every working folder.

    KeyError: the user has no home.
    """
    import pwd  # not on Windows

    cache, home = (os.environ.get(name, "") for name in ("XDG_CACHE_HOME", "HOME"))
    if os.path.isabs(cache):
        return Path(cache)
    return Path(home if os.path.isabs(home) else pwd.getpwuid(os.geteuid()).pw_dir) / ".cache"


def _fingerprint(compiler: list[str]) -> str:
    """A name that changes with everything on which the compiled library depends."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    parts = [
        *compiler,
        version,
        *_FLAGS,
        importlib.metadata.version("jaxlib"),
        platform.machine(),
        platform.processor(),
        _processor(),
    ]
    digest = hashlib.sha256("\0".join(parts).encode())
    for name in _SOURCES:
        digest.update((_FOLDER / name).read_bytes())
    return digest.hexdigest()[:32]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _processor() -> str:
    """Linux's description of the processor and its instructions; different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(names)))
