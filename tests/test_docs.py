"""The pages: their links, paths and commands, and what is made from the code."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from ringrl import recipes
from ringrl.cli.entry import VERBS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_commands_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (page.parent / target).exists(), f"{target} is not there"
    for name in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), f"{name} is not there"
    steps = recipes.listing()["data"]
    for name in re.findall(r"ringrl data ([a-z]\w+)", text):
        assert name in {step for step, _ in steps}, f"data has no step {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
    """Files and folders of the repository, named in backticks; capital letters are a place for a name."""
    named = re.findall(r"`((?:ringrl|agents|data|configs|docs|tests|benchmarks)/[a-z0-9_./]*)`", page.read_text())
    missing = sorted({path for path in named if page.name != "CHANGELOG.md" and not (ROOT / path).exists()})
    assert not missing, f"{page.name} names {missing}"


def test_the_architecture_names_every_room():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "ringrl").glob("*/__init__.py")}
    missing = sorted(room for room in rooms if f"| `{room}` |" not in text)
    assert not missing


def commands(page):
    """Lines of the page's blocks that call ringrl, as arguments; of several on a line each; comments are left out."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        line.strip() for line in page.read_text().splitlines() if line.startswith("    ringrl ") and line[-1] != "\\"
    ]
    for line in dict.fromkeys(lines):
        for command in line.split("#")[0].split("&&"):
            words = shlex.split(command, posix=True) if "ringrl" in command and "'" not in command else []
            if words[:1] == ["ringrl"] and "STEP" not in words and "..." not in words and len(words) > 1:
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_can_be_given(page):
    """Every verb, step and option is there, and takes what it is given."""
    for verb, *arguments in commands(page):
        try:
            if verb == "data":
                tyro.cli(recipes.load("data", arguments[0]).Args, args=arguments[1:])
            elif verb in VERBS:
                tyro.cli(VERBS[verb], args=arguments)
            else:
                assert verb.startswith("-"), f"ringrl {verb}"
        except SystemExit as stop:
            assert stop.code == 0, f"ringrl {verb} {shlex.join(arguments)}"


def test_the_config_reference_is_what_the_code_says():
    done = subprocess.run(
        [sys.executable, ".ci/config_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "MUJOCO_GL": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
