"""A step that is killed, and given again: a few of the kills of `python -m benchmarks.faults`."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "step",
    ["build_store", *(pytest.param(step, marks=pytest.mark.slow) for step in ("train", "download", "lines", "cp"))],
)
def test_nothing_is_lost_torn_or_left(step):
    command = [
        sys.executable,
        "-m",
        "benchmarks.faults",
        "--kills",
        "3",
        "--flips",
        "0",
        "--mutations",
        "0",
        "--ends",
        "0",
        "--hashed",
        "0",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, "--only", step], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {"kills": 3, "lost": 0, "differing": 0, "torn": 0, "leftovers": 0}
    assert json.loads(done.stdout.splitlines()[-1]) == figures
