"""`make audit` lists licences, and refuses those that are not known to be allowed."""

import importlib.util
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / ".ci" / "licences.py"


@pytest.fixture(scope="module")
def licences():
    spec = importlib.util.spec_from_file_location("licences", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(folder: Path, name: str, *lines: str) -> PathDistribution:
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *lines, "", ""]))
    return PathDistribution(about)


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["License-Expression: Apache-2.0 OR GPL-3.0-only"], True),
        (["License-Expression: Apache-2.0 AND GPL-3.0-only"], False),
        (["License-Expression: (MIT OR GPL-2.0-only) AND MIT"], False),
        (["License-Expression: BSD-3-Clause AND 0BSD AND Zlib"], True),
        (
            ["Classifier: License :: OSI Approved", "Classifier: License :: OSI Approved :: Apache Software License"],
            True,
        ),
        (["Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", "License: MIT"], False),
        (["License: Apache License, Version 2.0"], True),
        (["License: MPL-2.0 AND MIT"], True),
        (["License: the licence of its authors"], False),
        (["License: MIT", "        and more"], False),
        (["License: Apache License", "          Version 2.0, January 2004", "    and so on"], True),
        ([], False),
    ],
    ids=str,
)
def test_a_licence_is_allowed_or_not(licences, tmp_path, capsys, lines, expected):
    assert licences.main([package(tmp_path, "some", *lines)]) == (0 if expected else 1)
    out = capsys.readouterr().out
    assert ("not allowed: 0" in out) == expected and out.startswith("some")


def test_what_is_excepted_says_why(licences, tmp_path):
    assert licences.main([package(tmp_path, "libtpu", "License: Google Cloud Platform Terms of Service")]) == 0
    assert all(licences.EXCEPTIONS.values())
