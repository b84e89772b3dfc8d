"""The compile cache of tests: programs outlive the process, broken ones are compiled anew, its size is bounded."""

import os
import subprocess
import sys

from tests import compile_cache

PROGRAM = """
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
print(float(jax.jit(lambda x: 2 * x + 1)(3.0)), sum(hits))
"""


def run(environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    assert done.stderr == ""
    return done.stdout.split()


def test_programs_are_kept_and_broken_ones_are_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGRL_TEST_CACHE", str(tmp_path))
    environment = compile_cache.environment()
    first, second = run(environment), run(environment)
    assert first == ["7.0", "0"] and second[0] == "7.0" and int(second[1]) > 0
    entries = list(compile_cache.folder().glob("*-cache"))
    assert entries
    for path in entries:  # what a process that is killed leaves
        path.write_bytes(path.read_bytes()[:20])
    assert run(environment) == ["7.0", "0"]


def test_what_was_not_used_for_longest_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGRL_TEST_CACHE", str(tmp_path))
    for version in ("jax-1", "jax-2"):
        (tmp_path / version).mkdir()
    paths = [tmp_path / f"jax-{1 + index % 2}" / f"{index}-cache" for index in range(6)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + index, 1000 + index))
    compile_cache.prune(limit=600)
    assert all(path.exists() for path in paths)
    compile_cache.prune(limit=500)
    assert [path.exists() for path in paths] == [False] * 4 + [True] * 2
