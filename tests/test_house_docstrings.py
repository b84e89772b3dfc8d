"""Everything public has a docstring; those of the front door say shapes, units and errors."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator

import pytest

import ringrl
from tests.house import ROOT, FunctionNode, each_folder_of_code, files_of, parse


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


@each_folder_of_code
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
