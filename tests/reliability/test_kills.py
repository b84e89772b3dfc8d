"""A step that is killed, or runs out of disk, and is given again: a few tries of `python -m benchmarks.faults`."""

import json
import os
import subprocess
import sys

import pytest

PARTS = ("kills", "full", "ends", "flips", "mutations", "hashed")


def figures_of(part, step):
    """What three tries of one part find."""
    tries = [word for name in PARTS for word in (f"--{name}", "3" if name == part else "0")]
    command = [sys.executable, "-m", "benchmarks.faults", *tries, "--only", step]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    if "run as root, or as" in done.stderr:
        pytest.skip("a file system cannot be mounted here")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "step",
    ["build_store", *(pytest.param(step, marks=pytest.mark.slow) for step in ("train", "download", "lines", "cp"))],
)
def test_nothing_is_lost_torn_or_left(step):
    assert figures_of("kills", step) == {"kills": 3, "lost": 0, "differing": 0, "torn": 0, "leftovers": 0}


@pytest.mark.parametrize(
    "step",
    ["card", *(pytest.param(step, marks=pytest.mark.slow) for step in ("train", "report", "export", "minari"))],
)
def test_a_full_disk_is_said_in_a_line_and_nothing_is_lost(step):
    figures = figures_of("full", step)
    assert figures.pop("full") == 3 and not any(figures.values()), figures
