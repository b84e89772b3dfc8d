"""Lists the licence of every installed package, and fails where one is not known to be allowed: `make audit`.

    python .ci/licences.py

ringrl is licensed under Apache-2.0 and installs, but does not contain, what it depends on. Allowed are permissive
licences, and those whose conditions end at the files under them (MPL-2.0).
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-CMU", "MPL-2.0",
    "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
}  # fmt: skip
# What packages say that have no SPDX expression: a classifier, or words of their own.
SPELLINGS = {
    "Apache-2.0": r"apache( software)? licen[cs]e|apache([ -]licen[cs]e)?,?( version)? ?2(\.0)?",
    "BSD-2-Clause": r"(simplified|2-clause) bsd( licen[cs]e)?",
    "BSD-3-Clause": r"bsd( licen[cs]e)?|(3-clause|new) bsd( licen[cs]e)?|bsd 3-clause( licen[cs]e)?",
    "ISC": r"isc licen[cs]e( \(iscl\))?",
    "MIT": r"(the )?mit licen[cs]e",
    "MPL-2.0": r"mozilla public license 2\.0 \(mpl 2\.0\)",
    "PSF-2.0": r"python software foundation licen[cs]e",
    "Unlicense": r"the unlicense( \(unlicense\))?",
}
# Package -> why it may be installed although its licence is not in the list.
EXCEPTIONS = {"libtpu": "of the extra `plan` alone: Google's TPU compiler, under the terms of its cloud platform"}


def licences_of(package: Distribution) -> list[str]:
    """What a package says of its licence, each an SPDX expression where it can be read as one; empty: nothing."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return [expression]
    classifiers = [text for text in about.get_all("Classifier", []) if text.startswith("License :: ")]
    named = [text.rpartition(" :: ")[2] for text in classifiers if text != "License :: OSI Approved"]
    words = " ".join((about.get("License") or "").split())
    return [_spelled(text) for text in named or [words] if text]


def is_allowed(expression: str) -> bool:
    """Whether one of the choices of an SPDX expression has only allowed licences; parentheses count as all of them."""
    if "(" in expression:
        return all(name in ALLOWED for name in re.findall(r"[\w.-]+", expression) if name not in ("AND", "OR"))
    return any(all(name.strip() in ALLOWED for name in choice.split(" AND ")) for choice in expression.split(" OR "))


def main(packages: Iterable[Distribution]) -> int:
    """Print all, then what is not allowed; the exit status."""
    refused, count = [], 0
    for package in sorted(packages, key=lambda each: each.name.lower()):
        said = licences_of(package)
        line, count = f"{package.name:<28} {package.version:<20} {', '.join(said) or 'says nothing'}", count + 1
        print(line)
        if package.name not in EXCEPTIONS and not (said and all(map(is_allowed, said))):
            refused.append(line)
    print(f"{count} packages; not allowed: {len(refused)}{''.join(f'{chr(10)}  {line}' for line in refused)}")
    return 1 if refused else 0


def _spelled(words: str) -> str:
    known = [name for name, pattern in SPELLINGS.items() if re.fullmatch(pattern, words, re.IGNORECASE)]
    if words.startswith("Apache License Version 2.0, January 2004"):  # the whole text of it
        known = ["Apache-2.0"]
    return known[0] if known else words[:80]


if __name__ == "__main__":
    sys.exit(main(distributions()))
