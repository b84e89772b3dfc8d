"""Compiling the native CPU kernel: without a compiler, with one that fails, and twice at once."""

import logging
import os
import subprocess
import sys

import pytest

from ringrl.attention.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler that builds the native kernel")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`available` as a new process with an empty cache folder would see it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return native.available.__wrapped__


def test_no_compiler_that_works(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/bin/false")
    with caplog.at_level(logging.WARNING):
        assert not fresh()
    assert len(caplog.records) == 1


def test_the_compilers_first_error_is_logged(fresh, monkeypatch, caplog, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'a.cc: in f\na.cc:1: error: no\nmore' >&2; exit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert not fresh()
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == ["a.cc:1: error: no"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_off_by_environment(fresh, monkeypatch):
    monkeypatch.setenv("RINGRL_NATIVE", "0")
    assert not fresh()


def test_two_processes_compile_at_once(tmp_path):
    code = "from ringrl.attention.kernels import native; assert native.available()"
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert len(list(tmp_path.rglob("*.so"))) == 1 and not list(tmp_path.rglob("*.tmp"))
