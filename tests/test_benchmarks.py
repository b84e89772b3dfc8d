"""The benchmarks of data run, at a size that measures nothing, and end with the line that is read by programs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command):
    """What a benchmark prints, and its last line as JSON."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_store(tmp_path):
    command = "benchmarks.store --transitions 200000 --rollouts 5 --rounds 3".split()
    _, figures = run(*command, "--folder", str(tmp_path))
    ratios = {"vs_npz", "vs_h5py", "vs_minari", "vs_npz_1_cpu", "size_vs_npz"}
    assert set(figures) == ratios | {"chain128_ms", "chain128_ms_1_cpu", "build_peak_mb", "open_ms"}
    assert all(value > 0 for value in figures.values()) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_relabel():
    printed, figures = run(*"benchmarks.relabel --rounds 1 --rows 1000 --domains walker --cores 1 10000".split())
    assert set(figures) == {"walker", "walker_one", "bit_equal"} and figures["bit_equal"]
    assert "10000 cores: left out" in printed
