"""One file for a machine, and several side by side; the benchmark that is run is one that ends at once."""

import json
from pathlib import Path

import pytest

from benchmarks import machine


@pytest.fixture
def a_benchmark(monkeypatch, tmp_path):
    """A function (source) that makes a benchmark called `swift`, whose runs are counted."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(source: str) -> None:
        (package / "swift.py").write_text(f"open('runs.txt', 'a').write('x')\n{source}\n")

    return make


def test_it_goes_on_with_what_is_missing_and_keeps_last_lines(a_benchmark, capsys):
    a_benchmark("print('a table'); print('{\"vs_peer\": 1.5}')")
    out = Path("found.json")
    for _ in range(2):
        machine.main(machine.Args(only=("swift",), out=out))
    assert Path("runs.txt").read_text() == "x", "what the file has is not run again"
    found = json.loads(out.read_text())
    assert found["benchmarks"]["swift"]["figures"] == {"vs_peer": 1.5}
    assert {"processor", "cores", "vectors", "packages"} == set(found["machine"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    machine.main(machine.Args(only=("swift",), out=out, fresh=True))
    assert Path("runs.txt").read_text() == "xx"


def test_one_that_fails_is_named_and_not_kept(a_benchmark):
    a_benchmark("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="failed: swift"):
        machine.main(machine.Args(only=("swift",), out=Path("found.json")))
    assert not Path("found.json").exists()


def test_bad_input_is_one_line(a_benchmark, monkeypatch):
    a_benchmark("print('{}')")
    with pytest.raises(SystemExit, match="--only slow: no such benchmark; there are swift"):
        machine.main(machine.Args(only=("slow",)))
    Path("other.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"other.json: is not what benchmarks.machine writes"):
        machine.main(machine.Args(compare=(Path("other.json"),)))
    machine.main(machine.Args(only=("swift",), out=Path("mine.json")))
    monkeypatch.setattr(machine, "processor", lambda: "another")
    with pytest.raises(SystemExit, match="mine.json: is of .*, this is another; give another --out"):
        machine.main(machine.Args(only=("swift",), out=Path("mine.json")))


def test_machines_are_side_by_side_the_worst_first():
    def of(name: str, **figures: float) -> dict:
        return {
            "machine": {"processor": name, "cores": 2, "vectors": "AVX2"},
            "benchmarks": {"attention": {"seconds": 1, "figures": figures}},
        }

    fast, slow = of("fast", vs_torch=2.0, ring_vs_peer=3.0, size_vs_npz=0.5, peak=9.0), of("slow", vs_torch=0.9)
    assert list(machine.compare([fast, slow])) == [
        "| benchmark | ratio | slow, 2 cores, AVX2 | fast, 2 cores, AVX2 |",
        "|---|---|---|---|",
        "| attention | vs_torch | 0.90 | 2.00 |",
        "| attention | ring_vs_peer |  | 3.00 |",
    ]


def test_every_script_is_either_of_a_machine_or_not():
    there = {path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py")}
    assert set(machine._NOT_OF_A_MACHINE) < there and set(machine.scripts()) == there - set(machine._NOT_OF_A_MACHINE)
