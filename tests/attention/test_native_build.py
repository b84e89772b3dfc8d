"""Compiling the native CPU kernel: without a compiler, with one that fails, and twice at once."""

import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ringrl.attention.kernels import native, native_build

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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache folder with the library."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        compiler = native_build.find_compiler()
        assert compiler is not None
        native_build.build(compiler)
    return cache


@pytest.fixture
def cached(compiled, tmp_path, monkeypatch):
    """A copy of that folder's library, and a function that says which one is loaded, by a compiler that copies it."""
    folder = shutil.copytree(compiled, tmp_path / "cache") / "ringrl"
    (library,) = folder.glob("*.so")
    whole = library.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compilations = []

    def compile_again(command, **options):
        compilations.append(1)
        Path(command[-1]).write_bytes(whole)

    def load() -> tuple[Path, int]:
        compilations.clear()
        path = native_build.build(native_build.find_compiler() or [])
        assert path.read_bytes() == whole
        return path, len(compilations)

    fingerprint = library.name.partition("-")[0]
    monkeypatch.setattr(native_build, "_fingerprint", lambda compiler: fingerprint)
    monkeypatch.setattr(native_build.subprocess, "run", compile_again)
    return library, load


def test_a_library_is_compiled_once(cached):
    library, load = cached
    assert load() == (library, 0)


@pytest.mark.parametrize("damage", [lambda body: b"", lambda body: body[:4096], lambda body: body[:-1] + b"x"])
def test_a_damaged_library_is_compiled_anew(cached, damage):
    library, load = cached
    library.write_bytes(damage(library.read_bytes()))
    assert load() == (library, 1) and load() == (library, 0)
    assert [path.name for path in library.parent.iterdir()] == [library.name]


def test_what_others_may_have_written_is_compiled_anew(cached, monkeypatch):
    library, load = cached
    library.chmod(0o777)
    assert load() == (library, 1)
    moved = library.rename(library.parent / "elsewhere")
    library.symlink_to(moved)
    assert load() == (library, 1) and not library.is_symlink()
    library.parent.chmod(0o777)
    assert load() == (library, 0) and library.parent.stat().st_mode & 0o777 == 0o755
    monkeypatch.setattr(native_build.os, "geteuid", lambda: os.getuid() + 1)  # of another owner
    path, compilations = load()
    assert path.parent.parent == Path(tempfile.gettempdir()) and compilations == 1


def test_a_former_library_without_a_hash_is_removed(cached):
    library, load = cached
    former = library.rename(library.parent / f"{library.name.partition('-')[0]}.so")
    assert load() == (library, 1) and not former.exists()


def test_a_cache_folder_that_cannot_be_written_is_no_hindrance(cached, monkeypatch, caplog, tmp_path):
    library, load = cached
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path, _ = load()
    assert path.parent.stat().st_mode & 0o777 == 0o700 and "compiled for this start alone" in caplog.text


@pytest.mark.parametrize("home", ["", "relative"])
def test_no_home_is_no_working_folder(monkeypatch, home, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", home)
    assert native_build._cache() == Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache"


@pytest.mark.slow
def test_two_processes_compile_at_once(tmp_path):
    code = "from ringrl.attention.kernels import native; assert native.available()"
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert len(list(tmp_path.rglob("*.so"))) == 1 and not list(tmp_path.rglob("*.tmp"))
