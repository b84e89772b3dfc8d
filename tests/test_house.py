"""What keeps the house readable: the direction of imports, one meaning a name, and sizes.

Words are checked by test_house_words.py, documentation by test_house_docstrings.py.
"""

import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.house import ROOT, FunctionNode, each_folder, files_of, parse, sources

# From low to high. A room (a folder or a file of ringrl, or a part of one, which is then named by itself) imports from
# itself and from what is before it.
ORDER = """
errors user_modules choices ending memory_pool locks files manifest readers progress recipes accelerators
agent_record trust returns
episode batch config_section mesh_config model_config trackers config
attention.block_attention attention.tiling attention.local_step attention.kv_cache attention.kernels attention
envs.custom envs
store formats download relabelling sampling collect quality
model policy agent run_records metrics_lines run_tables run training rollout planner sequence_agent transition_agent
reporting.statistics reporting.figures reporting.page reporting
card cli __init__
""".split()
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 49


def name_of(path: Path) -> str:
    """The full name of a module: ringrl.envs.suite."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The entry of ORDER that a module of ringrl belongs to: the longest that fits, or its first part."""
    inside = module.removeprefix("ringrl").removeprefix(".") or "__init__"
    fitting = [room for room in ORDER if inside == room or inside.startswith(f"{room}.")]
    return max(fitting, key=len) if fitting else inside.partition(".")[0]


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, also inside its functions; relative imports are not used."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: write the import in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """The modules of ringrl that a file imports, or imports from."""
    modules = {name_of(source) for source in sources("ringrl")}
    found = set()
    for name in imported(path):
        if name.partition(".")[0] == "ringrl" and name != "ringrl.__version__":
            while name not in modules:
                name = name.rpartition(".")[0]
            found.add(name)
    return frozenset(found - {name_of(path)})


def by_room() -> dict[str, list[Path]]:
    rooms = defaultdict(list)
    for path in sources("ringrl"):
        rooms[room_of(name_of(path))].append(path)
    return dict(rooms)


ROOMS = by_room()
each_room = pytest.mark.parametrize("room", sorted(ROOMS))


@each_room
def test_a_room_imports_only_what_is_before_it(room):
    assert room in ORDER, f"give {room} a place in ORDER"
    allowed = set(ORDER[: ORDER.index(room) + 1])
    for path in ROOMS[room]:
        others = {name for name in imported_modules(path) if room_of(name) not in allowed}
        assert not others, f"{path.relative_to(ROOT)} imports {sorted(others)}"


def test_modules_do_not_import_in_circles():
    # A package's __init__ gathers names of its modules, and is run before any of them: it is no module of its own here.
    graph = {
        name_of(path): {name for name in imported_modules(path) if not name_of(path).startswith(f"{name}.")}
        for path in sources("ringrl")
        if path.name != "__init__.py"
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_the_package_does_not_import_its_recipes():
    for path in sources("ringrl"):
        assert not {name.partition(".")[0] for name in imported(path)} & {"agents", "data", "configs"}, path


def test_mujoco_is_imported_by_the_environments_alone():
    """It binds a renderer for the whole process: `ringrl.envs`, imported before any module in it, chooses which."""
    first = parse(ROOT / "ringrl/envs/__init__.py").body[1:3]
    assert [ast.unparse(each) for each in first] == ["from ringrl.envs.graphics import bind_backend", "bind_backend()"]
    for path in [path for folder in ("ringrl", "agents", "data", "benchmarks") for path in sources(folder)]:
        if not path.is_relative_to(ROOT / "ringrl/envs"):
            engines = {name.partition(".")[0] for name in imported(path)} & {"mujoco", "dm_control"}
            assert not engines, f"{path.relative_to(ROOT)}: import {engines} from ringrl.envs.simulator"


ALL = [path for folder in ("ringrl", "agents", "data") for path in sources(folder)]
PARSERS = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "csv.reader", "csv.DictReader"}
# What another process has just written; and what Orbax writes, whose damage is expected.
READ_BY_THEMSELVES = ("readers.py", "locks.py", "processes.py", "checkpoint_files.py")


def test_files_are_parsed_by_the_reader_that_turns_every_failure_into_a_sentence():
    for path in ALL:
        if path.name not in READ_BY_THEMSELVES:
            used = PARSERS & {ast.unparse(node) for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
            assert not used, f"{path.relative_to(ROOT)} uses {sorted(used)}: read with ringrl.readers"


@pytest.mark.parametrize("kind", ["agents", "data"])
def test_recipes_do_not_import_each_other(kind):
    names = {path.stem for path in sources(kind)}
    for path in sources(kind):
        first = {name.partition(".")[0] for name in imported(path)}
        assert not first & (names | {"agents", "data", "configs"}), path


def test_only_ringrl_is_a_package():
    others = ("agents", "data", "configs", "benchmarks")
    assert not [path for folder in others for path in (ROOT / folder).glob("__init__.py")]


def twice(names: list[tuple[str, Path]]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name, path in names:
        found[name].append(str(path.relative_to(ROOT)))
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_two_files_share_a_name():
    assert not twice([(path.stem, path) for path in ALL if path.stem not in ("__init__", "__main__")])


def test_no_two_classes_share_a_name():
    """But for `Config` and `Agent` of each agent and `Args` of each data step, which are found by these names."""
    classes = [
        (node.name, path)
        for path in ALL
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
        and not (path.parent.name == "agents" and node.name in ("Config", "Agent"))
        and not (path.parent.name == "data" and node.name == "Args")
    ]
    assert not twice(classes)


def code_lines(function: FunctionNode) -> int:
    """Lines of a function, without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    lines = (function.end_lineno or 0) - function.lineno + 1
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0)


@each_folder
def test_files_and_functions_are_short(folder):
    for path in files_of(folder):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines"
        for node in ast.walk(parse(path)):
            if isinstance(node, FunctionNode):
                where = f"{path.relative_to(ROOT)}: {node.name}"
                assert code_lines(node) <= MAX_FUNCTION_LINES, f"{where} has {code_lines(node)} lines"
