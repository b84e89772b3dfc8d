"""Memory that a step's temporaries took is there for the next step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringrl.config import dump_config
from ringrl.memory_pool import _CHOSEN_BY_USER

STEPS = """
import json, resource, sys
import jax, jax.numpy as jnp
from ringrl.memory_pool import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
step = jax.jit(lambda x: (jax.lax.scan(lambda x, _: (x * 0.9, x), x, length=64)[1] ** 2).sum())
x = jnp.ones(2**18)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

each = []
for n in range(25):
    before = faults()
    jax.block_until_ready(step(x))
    each.append(faults() - before)
print(json.dumps([kept, sorted(each[5:])[10]]))
"""


on_glibc_without_gpu = pytest.mark.skipif(
    not sys.platform.startswith("linux") or any(Path("/dev").glob("nvidia[0-9]*")),
    reason="glibc's malloc is Linux's, and machines with a GPU are left alone",
)


def printed(program, *arguments, **environment):
    """What a program prints in a process whose malloc nobody has set; loading libtpu may have set it here."""
    inherited = {name: value for name, value in os.environ.items() if name not in _CHOSEN_BY_USER}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=inherited | environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def run(mode, **environment):
    return json.loads(printed(STEPS, mode, **environment).splitlines()[-1])


@on_glibc_without_gpu
def test_a_step_faults_in_no_page_again():
    """The median step of 20, whose temporary has 64 MiB; without it each of its 4 KiB pages is a fault.

    A step whose temporary is taken before that of the last one is given back, as on a busy machine, needs new memory.
    """
    kept, faults = run("kept")
    assert kept is True and faults < 2**14 / 4
    _, without = run("plain")
    assert without > 2**14 / 2


TRAINED = """
import ctypes, sys
from ringrl import cli

sys.argv = ["ringrl", "train", *sys.argv[1:]]
cli.main()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(stream))
libc.fflush(ctypes.c_void_p(stream))
"""


@on_glibc_without_gpu
def test_the_threads_of_a_command_share_one_arena(tiny_config, tmp_path):
    """In an arena of its own, a thread would ask the kernel for every large temporary anew."""
    config = tiny_config({"name": "agentic_transformer", "fused": True, "trajectories": 2}, training={"steps": 2})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert printed(TRAINED, tmp_path / "c.yaml", "--out", tmp_path / "run").count("<heap nr=") == 1


def test_what_the_user_chose_stays():
    assert run("kept", MALLOC_ARENA_MAX="2")[0] is False
