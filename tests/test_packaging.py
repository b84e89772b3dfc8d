"""The wheel holds the package and the recipes, nothing else; and what is imported is declared."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from ringrl import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What only some users need; the code that imports it says which extra to install.
EXTRAS = {name for group in PROJECT["optional-dependencies"].values() for name in group}


def canonical(requirement: str) -> str:
    """The distribution's name in a requirement, in the index's spelling."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_only_ringrl_lands_in_site_packages(wheel):
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"ringrl", f"ringrl-{wheel.name.split('-')[1]}.dist-info"}


def test_the_wheel_holds_every_file_and_every_recipe(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in (ROOT / "ringrl").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    modules = {str(path.relative_to(ROOT)) for path in files}
    recipes = {
        f"ringrl/_recipes/{path.relative_to(ROOT)}"
        for pattern in ("agents/*.py", "data/*.py", "configs/*.yaml")
        for path in ROOT.glob(pattern)
    }
    assert all(any(name.startswith(f"ringrl/_recipes/{kind}/") for name in recipes) for kind in ("agents", "data"))
    assert modules | recipes <= inside
    assert not [name for name in inside if "__pycache__" in name or name.endswith(".partial")]


def test_what_is_imported_is_declared():
    declared = {canonical(each) for each in [*PROJECT["dependencies"], *EXTRAS]}
    owners = packages_distributions()
    missing = {}
    for folder in ("ringrl", "agents", "data"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"ringrl"}:
                    if not declared & {canonical(owner) for owner in owners.get(top, [top])}:
                        missing[top] = str(path.relative_to(ROOT))
    assert not missing


def test_constraints_pin_every_requirement():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line) for line in lines if line and not line.startswith("#")}
    needed = {canonical(each) for each in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]}
    assert needed <= pinned
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines)


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_checkout(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    # The dependencies are borrowed: `.pth` files of a folder that is itself named in one are not followed, so this
    # environment's editable ringrl stays out of sight.
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (site / "borrowed.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import ringrl.recipes; print(ringrl.recipes.root())"],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True},
    )
    assert Path(where.stdout.strip()) == site / "ringrl" / "_recipes"
    listed = subprocess.run(
        [tmp_path / "venv" / "bin" / "ringrl", "ls"],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True},
    )
    for path in [*(ROOT / "agents").glob("[!_]*.py"), *(ROOT / "configs").glob("[!_]*.yaml")]:
        assert path.stem in listed.stdout


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.name
)
def test_the_forms_for_issues_ask_something(form):
    about = yaml.safe_load(form.read_text())
    assert about["name"] and about["description"] and all(each["attributes"]["label"] for each in about["body"])
