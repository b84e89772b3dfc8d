"""Finds, lists, loads and copies the recipes: agents, data steps and configs.

Recipes are files that people read whole, copy and change, so they are found by path and never imported as packages.
In a checkout they lie beside the package; in an installed wheel under `ringrl/_recipes/`. An editable install has both,
and its copy is as old as the install, which is why the checkout comes first.
"""

import ast
import difflib
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, ModuleType

from ringrl.errors import UserError
from ringrl.files import alone_in, atomic_file, user_path

SUFFIXES = {"agents": ".py", "data": ".py", "configs": ".yaml"}
"""The kinds of recipes, which are also the names of their folders, and the suffix of their files."""


def root() -> Path:
    """The folder of `agents/`, `data/` and `configs/`: the checkout if there is one, else the wheel's copy."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "agents").is_dir():
        return checkout
    return package / "_recipes"


def find(kind: str, name: str | os.PathLike[str]) -> Path:
    """The file of a recipe: the user's own path if `name` is one, else the shipped recipe of that name.

    Args:
        kind: "agents", "data" or "configs".
        name: a path (it carries the kind's suffix, or a folder, or exists), or the bare name of a shipped recipe.

    Raises:
        UserError: no such file or recipe; the message names the nearest recipes and lists all.
    """
    suffix, path = SUFFIXES[kind], user_path(name)
    shipped = _shipped(kind)
    if os.path.isfile(path):  # False also of a name that no file system takes
        return path.resolve()
    if path.suffix in (suffix, ".yml") or len(path.parts) > 1:
        # `configs/demo.yaml` is how the documentation names a shipped config; it works outside a checkout as well.
        if path.stem in shipped and path.parent in (Path(kind), Path(".")):
            return shipped[path.stem]
        raise UserError(f"{name}: no such file; `ringrl ls` lists the shipped {kind}")
    if path.name in shipped:
        return shipped[path.name]
    known = ", ".join(shipped) or "none"
    raise UserError(f"{name}: {kind} has no recipe of that name; {_guess(path.name, shipped)}there are: {known}")


def listing() -> dict[str, list[tuple[str, str]]]:
    """Every shipped recipe by kind, as (name, first line of its docstring or head comment), in alphabetical order."""
    return {kind: [(name, _headline(path)) for name, path in _shipped(kind).items()] for kind in SUFFIXES}


def copy(name: str, destination: str | os.PathLike[str]) -> Path:
    """Copies a shipped recipe to a file, or into a folder under its own file name, for the user to change.

    Args:
        name: a recipe's name; where two kinds share it, say the kind too, as in `configs/demo`.
        destination: a new file, or an existing folder.

    Returns:
        The path of the new file.

    Raises:
        UserError: no such recipe, a name that two kinds share, or a file that is already there.
    """
    source = _find_any(name)
    target = user_path(destination)
    if target.is_dir() or str(destination).endswith(os.sep):
        target = target / source.name
    with alone_in(target.parent, f".{target.name}.lock", of=target):
        if target.exists():
            raise UserError(f"{target}: already exists and is not overwritten; give another path or remove it")
        with atomic_file(target) as partial:
            shutil.copyfile(source, partial)
    return target


def is_shipped(kind: str, source: bytes) -> bool:
    """Whether a shipped recipe of that kind has this very source."""
    return any(path.read_bytes() == source for path in _shipped(kind).values())


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Runs a file's source, never compiled code beside it (`__pycache__`), which nothing binds to that source."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load(kind: str, name: str | os.PathLike[str]) -> ModuleType:
    """Runs a recipe's file as a module and returns it; a second call with the same file returns the same module.

    The module's name is unique to the file's path and stays in `sys.modules`, so that its dataclasses and its pickles
    work, and two agents of one name from two folders can live side by side.

    Raises:
        UserError: no such recipe, a file that does not parse, or one that imports what this ringrl does not have.
    """
    path = find(kind, name)
    module_name = f"ringrl_{kind}_{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if path.suffix != ".py":
        raise UserError(f"{path}: not a Python file; {kind} are loaded from .py files")
    spec = importlib.util.spec_from_file_location(module_name, path, loader=_SourceLoader(module_name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[module_name]
        raise UserError(f"{path}, line {error.lineno}: {error.msg}; correct the file") from error
    except ImportError as error:
        del sys.modules[module_name]
        if (error.name or "").partition(".")[0] != "ringrl":
            raise
        raise UserError(_earlier(kind, path, error)) from error
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _earlier(kind: str, path: Path, error: ImportError) -> str:
    """What to do about a recipe that imports a name or a module that ringrl does not have, as earlier ones did."""
    missing = error.msg.partition(" (")[0]  # what follows is the path of ringrl's own file
    present = {
        "agents": ("an agent is a class now", "decision_transformer"),
        "data": ("its modules have moved", "build_store"),
    }
    change, example = present[kind]
    example = path.stem if path.stem in _shipped(kind) else example
    return (
        f"{path}: written for an earlier ringrl ({missing}); {change}: `ringrl cp {example} NEW.py` copies one to "
        "start from"
    )


def _shipped(kind: str) -> dict[str, Path]:
    """Shipped recipes of a kind by name; files whose names begin with an underscore are not recipes."""
    paths = sorted((root() / kind).glob(f"*{SUFFIXES[kind]}"))
    return {path.stem: path for path in paths if not path.name.startswith("_")}


def _find_any(name: str) -> Path:
    """The shipped recipe of any kind; `kind/name` tells recipes of one name apart."""
    kind, _, rest = name.rpartition("/")
    wanted = Path(rest).stem if Path(rest).suffix in SUFFIXES.values() else rest
    kinds = {each: _shipped(each) for each in SUFFIXES if kind in ("", each)}
    found = [each for each, shipped in kinds.items() if wanted in shipped]
    if len(found) == 1:
        return kinds[found[0]][wanted]
    if found:
        raise UserError(f"{name}: a recipe of each of {', '.join(found)}; write one of {found[0]}/{wanted}, ...")
    names = {each for shipped in kinds.values() for each in shipped}
    raise UserError(f"{name}: no recipe of that name; {_guess(wanted, names)}`ringrl ls` lists them all")


def _guess(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=2)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _headline(path: Path) -> str:
    """First line of a Python file's docstring, or of a YAML file's head comment; empty if it has none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    first = text.partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
