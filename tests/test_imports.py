"""Imports point one way: what lies deeper knows nothing of what is built on it."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room imports from its own layer and from those above it in this list; single files of ringrl that are not listed
# (the types, the errors, the configuration) lie above all.
LAYERS = [
    {"attention", "experience", "envs", "learners"},
    {"model"},
    {"agent"},
    {"training", "rollout", "report", "planner"},
    {"demo"},
    {"verbs"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Within those layers: what a room must do without.
APART = {
    "attention": {"experience", "envs"},
    "envs": {"experience", "attention"},
    "learners": {"attention", "experience", "envs"},
    "model": {"experience", "envs", "learners"},
}
SOURCES = sorted((ROOT / "ringrl").rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside its functions; relative imports are not used."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: write the import in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "ringrl").parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imported(path))
    return {parts[1] for parts in names if parts[0] == "ringrl" and len(parts) > 1} - {room_of(path), "__version__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_no_later_room(path):
    room, others = room_of(path), rooms_imported(path)
    later = {other for other in others if LEVEL.get(other, -1) > LEVEL.get(room, -1)}
    assert not later, f"{room} imports {later}"
    assert not others & APART.get(room, set())


def test_rooms_do_not_go_in_circles():
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        graph.setdefault(room_of(path), set()).update(rooms_imported(path) - {"__init__"})
    graphlib.TopologicalSorter(graph).prepare()


def test_experience_takes_only_the_layout_from_attention():
    for path in (ROOT / "ringrl" / "experience").rglob("*.py"):
        names = {name for name in imported(path) if name.startswith("ringrl.attention")}
        assert all(name.startswith("ringrl.attention.layout.") for name in names), f"{path}: {names}"


def test_the_package_does_not_import_its_recipes():
    for path in SOURCES:
        first = {name.partition(".")[0] for name in imported(path)}
        assert not first & {"agents", "data", "configs"}, path


@pytest.mark.parametrize("kind", ["agents", "data"])
def test_recipes_do_not_import_each_other(kind):
    names = {path.stem for path in (ROOT / kind).glob("*.py")}
    for path in (ROOT / kind).glob("*.py"):
        first = {name.partition(".")[0] for name in imported(path)}
        assert not first & (names | {"agents", "data", "configs"}), path


def test_only_ringrl_is_a_package():
    assert not [
        path for kind in ("agents", "data", "configs", "benchmarks") for path in (ROOT / kind).glob("__init__.py")
    ]
