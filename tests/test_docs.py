import re
from pathlib import Path

import pytest

from ringrl import recipes

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
