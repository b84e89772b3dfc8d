"""What went wrong, in one line, where an error is no UserError: of the system, of JAX's devices, or unforeseen."""

import errno
import os
import sys

_ADVICE = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room there, or choose another place",
    errno.EFBIG: "raise the limit with `ulimit -f`, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "check its owner and mode, or choose another place",
    errno.EPERM: "check its owner and mode, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file in it",
    errno.EMFILE: "raise the limit with `ulimit -n`",
}


def explain(error: Exception) -> tuple[int, str]:
    """The exit status and the sentence: 2 for what the user can mend, 1 for what was not foreseen."""
    platform = _unusable_platform(error)
    if platform is not None:
        return 2, platform
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        where = " -> ".join(names) or "the standard output, or a file whose name is not known"
        return 2, f"{where}: {error.strerror}; {_ADVICE.get(error.errno, '--debug shows where')}"
    if isinstance(error, MemoryError):
        return 1, f"out of memory{_text(error)}: give the process more, or the step less at once (--debug shows where)"
    return 1, f"{type(error).__name__}{_text(error) or ': no more is known'} (--debug shows where)"


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())[:400]
    return f": {text}" if text else ""


def _unusable_platform(error: Exception) -> str | None:
    """The sentence, where JAX was made to use devices that are not there: it then fails in many ways, some wordless."""
    wanted, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")
    if not wanted or wanted == "cpu" or jax is None or isinstance(error, OSError):
        return None
    try:
        jax.devices()
    except Exception as found:
        reason = " ".join(str(found).partition(" (set JAX_PLATFORMS")[0].split())[:200]
        return (
            f"JAX_PLATFORMS={wanted}: there are no such devices for JAX here{f' ({reason})' if reason else ''}; unset "
            "it, or install JAX for them, such as 'jax[cuda12]'"
        )
    return None
