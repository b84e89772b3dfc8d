"""The site has the pages of docs/ and those at the top of the repository; links between them become the site's."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TOP = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the top pages."""
    for name in TOP:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links from docs/ to the top and back, as the pages lie in the site; the README is the first page."""
    markdown = re.sub(r"\]\((?:\.\./)?README\.md", "](index.md", markdown)
    markdown = re.sub(r"\]\(\.\./(?=[A-Z]+\.md)", "](", markdown)
    return re.sub(r"\]\(docs/", "](", markdown) if page.file.src_path in (*TOP, "index.md") else markdown
