"""What keeps the house readable: the direction of imports, one meaning a name, sizes, words, and documentation."""

import ast
import graphlib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import ringrl

ROOT = Path(__file__).parents[1]
# From low to high. A room (a folder or a file of ringrl, or a part of one, which is then named by itself) imports from
# itself and from what is before it.
ORDER = """
errors files progress recipes accelerators agent_record returns
episode batch config
attention.block_attention attention.tiling attention.local_step attention.kernels attention
envs.custom envs
store formats download relabelling sampling collect quality
model agent run training rollout planner sequence_agent transition_agent
reporting.statistics reporting.figures reporting.page reporting
card cli __init__
""".split()
CODE = ("ringrl", "agents", "data", "benchmarks")
NOT_PYTHON = (".cc", ".h", ".css", ".js", ".html")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 49


@cache
def sources(folder: str) -> tuple[Path, ...]:
    """The Python files of a folder of the repository."""
    return tuple(sorted((ROOT / folder).rglob("*.py")))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


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
each_folder = pytest.mark.parametrize("folder", [*sorted({room.partition(".")[0] for room in ROOMS}), *CODE[1:]])


def files_of(folder: str) -> list[Path]:
    """The Python files of a root folder, or of a top-level room of ringrl."""
    if folder in CODE:
        return list(sources(folder))
    return [path for room, paths in ROOMS.items() if room.partition(".")[0] == folder for path in paths]


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


ALL = [path for folder in ("ringrl", "agents", "data") for path in sources(folder)]


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


FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


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


@cache
def unused_words() -> list[tuple[re.Pattern[str], re.Pattern[str] | None, str]]:
    """(a word that is not used, text that may contain it, what is written instead), of the glossary's table."""
    _, _, table = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("## Words not used")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    assert len(rows) > 8
    return [
        (_whole(word), _whole(*allowed) if allowed else None, use)
        for words, use, exceptions in rows
        for allowed in [re.findall(r"`([^`]+)`", exceptions)]
        for word in re.findall(r"`([^`]+)`", words)
    ]


def _whole(*texts: str) -> re.Pattern[str]:
    """Any of `texts` as whole words, in any case; in identifiers `_` is what a space is in a sentence."""
    either = "|".join(re.escape(text).replace(r"\ ", r"[\s_]+") for text in texts)
    return re.compile(rf"(?<![a-z])(?:{either})(?![a-z])", re.IGNORECASE)


def found_words(path: Path) -> list[str]:
    text, found = path.read_text(encoding="utf-8"), []
    for word, allowed, use in unused_words():
        rest = allowed.sub(lambda match: re.sub(r"\S", "-", match.group()), text) if allowed else text
        for match in word.finditer(rest):
            line = rest.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()!r}; write: {use}")
    return found


@each_folder
def test_code_uses_the_glossarys_words(folder):
    folders = {path.parent for path in files_of(folder) if path.parent not in (ROOT, ROOT / "ringrl")}
    native = [
        path for each in folders for path in each.iterdir() if path.suffix in (".cc", ".h", ".css", ".js", ".html")
    ]
    found = [line for path in [*files_of(folder), *sorted(native)] for line in found_words(path)]
    assert not found, "\n".join(found)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.yaml"), ROOT / "Makefile"]


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_glossarys_words(page):
    if page.name in ("CHANGELOG.md", "glossary.md"):  # what was, and the words themselves
        return
    found = found_words(page)
    assert not found, "\n".join(found)


def public(tree: ast.Module | ast.ClassDef, within: str = "") -> Iterator[tuple[str, ast.ClassDef | FunctionNode]]:
    """Public classes, functions and methods of a file; what begins with an underscore and what it contains is not."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | FunctionNode) and not node.name.startswith("_"):
            yield within + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def raises_user_error(function: ast.AST) -> bool:
    """Whether a function's own statements raise UserError, not those of functions within it."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, FunctionNode | ast.ClassDef | ast.Lambda):
            continue
        raised = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(raised, ast.Call) and ast.unparse(raised.func).endswith("UserError") or raises_user_error(node):
            return True
    return False


@each_folder
def test_everything_public_is_documented(folder):
    missing = []
    for path in files_of(folder):
        where = path.relative_to(ROOT)
        if not ast.get_docstring(parse(path)):
            missing.append(f"{where}: no docstring")
        for name, node in public(parse(path)):
            text = ast.get_docstring(node)
            if not text:
                missing.append(f"{where}: {name} has no docstring")
            elif isinstance(node, FunctionNode) and raises_user_error(node) and not _names_errors(text):
                missing.append(f"{where}: {name} raises UserError, and its docstring does not say when")
    assert not missing, "\n".join(missing)


def _names_errors(text: str) -> bool:
    return bool(re.search(r"\bRaises\b|\bUserError\b|\bErrors as\b", text))


# Of parameters with such a name, the docstring says in which unit they are.
MEASURED = re.compile(r"steps|limit|timeout|seconds|length|context|bytes|trials|repeat")
UNITS = re.compile(r"steps|seconds|tokens|bytes|trials|episodes|rows|axis", re.IGNORECASE)
SHAPE = re.compile(r"\[[^\]]*\]")


def front_door() -> list[tuple[str, Callable[..., object]]]:
    """Functions and classes that `import ringrl` gives, and those of its modules."""
    found = {}
    for name in ringrl.__all__:
        value = getattr(ringrl, name)
        inner = {f"{name}.{each}": getattr(value, each) for each in value.__all__} if inspect.ismodule(value) else {}
        found |= inner or {name: value}
    return [
        (name, value) for name, value in sorted(found.items()) if inspect.isfunction(value) or inspect.isclass(value)
    ]


FRONT_DOOR = front_door()


@pytest.mark.parametrize("value", [value for _, value in FRONT_DOOR], ids=[name for name, _ in FRONT_DOOR])
def test_the_front_door_says_shapes_units_and_errors(value):
    """Every parameter by name, its unit where it counts something, shapes and dtypes of arrays, and what is raised."""
    text = inspect.getdoc(value) or ""
    if re.search(r"^ +raise ", inspect.getsource(inspect.getmodule(value)), re.MULTILINE):
        assert re.search(r"raises|error", text, re.IGNORECASE), "nothing is said of errors"
    hints = {name: str(kind) for name, kind in getattr(value, "__annotations__", {}).items()}
    for name, kind in hints.items():
        if name == "return" or "Arguments and errors are those of" in text:
            continue
        said = [line for line in text.splitlines() if re.search(rf"\b{name}\b", line)]
        assert said, f"{name} is not described"
        if MEASURED.search(name) and "int" in kind:
            assert any(UNITS.search(line.replace(name, "", 1)) for line in said), f"{name} has no unit"
        if re.search(r"jaxtyping|Float|Int\d|ndarray|Array", kind):
            has_shape = re.search(r"Float|Int|Shaped", kind) or any(SHAPE.search(line) for line in said)
            assert has_shape, f"{name} has no shape"
