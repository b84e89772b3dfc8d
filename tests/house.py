"""The repository as the tests of the house read it: its Python files by folder, parsed once."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources(folder: str) -> tuple[Path, ...]:
    """The Python files of a folder of the repository."""
    return tuple(sorted((ROOT / folder).rglob("*.py")))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def top_level_rooms() -> tuple[str, ...]:
    """Names of the folders and files of ringrl."""
    package = ROOT / "ringrl"
    return tuple(sorted({path.relative_to(package).parts[0].removesuffix(".py") for path in sources("ringrl")}))


CODE = (*top_level_rooms(), "agents", "data", "benchmarks")
each_folder_of_code = pytest.mark.parametrize("folder", CODE)
each_folder = pytest.mark.parametrize("folder", [*CODE, "tests"])


def files_of(folder: str) -> list[Path]:
    """The Python files of a root folder, or of a top-level room of ringrl."""
    if folder in top_level_rooms():
        file = ROOT / "ringrl" / f"{folder}.py"
        return [file] if file.is_file() else list(sources(f"ringrl/{folder}"))
    return list(sources(folder))
