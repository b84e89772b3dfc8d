"""Code, tests and pages use the words of docs/glossary.md."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.house import ROOT, each_folder, files_of

NOT_PYTHON = (".cc", ".h", ".css", ".js", ".html")
# What tests may contain: tables of ablations that earlier versions named so, and a name that is misspelt on purpose.
IN_TESTS = ("probe-blind", "probe-foreign", "decision_transfomer")


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


def found_words(path: Path, exceptions: tuple[str, ...] = ()) -> list[str]:
    """A line for every word that a file should not contain, where it is in none of `exceptions`."""
    text, found = path.read_text(encoding="utf-8"), []
    for exception in exceptions:
        text = text.replace(exception, "-" * len(exception))
    for word, allowed, use in unused_words():
        rest = allowed.sub(lambda match: re.sub(r"\S", "-", match.group()), text) if allowed else text
        for match in word.finditer(rest):
            line = rest.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()!r}; write: {use}")
    return found


@each_folder
def test_code_uses_the_glossarys_words(folder):
    folders = {path.parent for path in files_of(folder) if path.parent not in (ROOT, ROOT / "ringrl")}
    others = [path for each in folders for path in each.iterdir() if path.suffix in NOT_PYTHON]
    exceptions = IN_TESTS if folder == "tests" else ()
    found = [line for path in [*files_of(folder), *sorted(others)] for line in found_words(path, exceptions)]
    assert not found, "\n".join(found)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.yaml"), ROOT / "Makefile"]


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_glossarys_words(page):
    if page.name in ("CHANGELOG.md", "glossary.md"):  # what was, and the words themselves
        return
    found = found_words(page)
    assert not found, "\n".join(found)
