"""docs/config.md: every setting of a configuration with its type, its default and what its comment says.

    python .ci/config_reference.py            # write it
    python .ci/config_reference.py --check    # end with status 1 where it is not what would be written

The meaning of a setting is the comment beside or above it in the code, so that there is one text.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from ringrl import config, recipes
from ringrl.config_section import ConfigSection

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config.md"
SECTIONS = {"": config.RunConfig} | config.SECTIONS
HEAD = """# Config reference

Every setting, made from the code by `.ci/config_reference.py`. A config is a YAML file of these sections;
`training.steps=100` on the command line changes one. `ringrl ls` lists the shipped configs, `ringrl cp NAME PATH`
copies one, and a run's `config.yaml` has all of its settings. A default of – means that the setting must be given.
"""


def main() -> int:
    """Write the page, or check it; returns the status to end with."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        parts.append(f"## {name or 'The whole'}\n\n{first_line(section)}\n\n{table(section, name)}")
    parts.append(f"## agent\n\nOf every agent:\n\n{table(config.AgentConfig, 'agent')}")
    for name, _ in recipes.listing()["agents"]:
        module = recipes.load("agents", name)
        about = (module.__doc__ or "").splitlines()[0]
        parts.append(f"### {name}\n\n{about}\n\n{table(module.Config, 'agent', of_agent(module.Config))}")
    text = "\n".join(parts).rstrip() + "\n"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is not what the code says: run python .ci/config_reference.py", file=sys.stderr)
        return 1
    return 0


def of_agent(section: type[ConfigSection]) -> list[str]:
    """The settings that an agent adds, or whose default it changes."""
    shared = config.AgentConfig.model_fields
    return [
        name
        for name, field in section.model_fields.items()
        if name not in shared or (name != "name" and field.default != shared[name].default)
    ]


def first_line(section: type[ConfigSection]) -> str:
    """Of a section's docstring."""
    return (section.__doc__ or "").strip().splitlines()[0]


def table(section: type[ConfigSection], prefix: str, names: list[str] | None = None) -> str:
    """A row a setting; `names`: which, by default the section's own."""
    said: dict[str, tuple[str, str]] = {}
    for each in reversed([each for each in section.__mro__ if "__annotations__" in vars(each)]):
        source = sys.modules[each.__module__].__file__ or ""
        if Path(source).is_relative_to(ROOT):
            said |= comments(Path(source), each.__name__)
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name in list(section.__annotations__) if names is None else names:
        if prefix == "" and name in (*SECTIONS, "agent"):
            continue
        kind, field = said[name][0], section.model_fields[name]
        assert said[name][1], f"{prefix}.{name} has no comment that says what it is"
        default = shown(field.get_default(call_default_factory=True))
        full = f"{prefix}.{name}".removeprefix(".")
        rows.append(f"| `{full}` | {cell(f'`{kind}`')} | {default} | {cell(said[name][1])} |")
    return "\n".join(rows) + "\n"


def plain(kind: ast.expr) -> str:
    """A type as a table has it: without bounds, and without the sign that ends a cell."""
    text = ast.unparse(_Bare().visit(kind))
    return text.replace(" | None", " or null").replace(" | ", " or ")


class _Bare(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        annotated = isinstance(node.value, ast.Name) and node.value.id == "Annotated"
        return node.slice.elts[0] if annotated and isinstance(node.slice, ast.Tuple) else node


def cell(text: str) -> str:
    """Text that ends no cell of a table."""
    return text.replace("|", "\\|")


def shown(default: Any) -> str:
    """A default as YAML would have it."""
    if default is PydanticUndefined:
        return "–"
    words = {None: "null", True: "true", False: "false", (): "[]"}
    try:
        text = words[default] if isinstance(default, bool | tuple) or default is None else f"{default}"
    except KeyError:
        text = f"{list(default)}"
    return f"`{text}`"


def comments(source: Path, name: str) -> dict[str, tuple[str, str]]:
    """Of each annotated name of a class: its type as written, and the comment above it and beside it."""
    text = source.read_text(encoding="utf-8")
    tokens = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.type == tokenize.COMMENT]
    alone = {each.start[0]: words(each.string) for each in tokens if not each.line[: each.start[1]].strip()}
    beside = {each.start[0]: words(each.string) for each in tokens if each.line[: each.start[1]].strip()}
    found = {}
    (owner,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in owner.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        lines, line = [], node.lineno - 1
        while line in alone:
            lines.insert(0, alone[line])
            line -= 1
        lines += [beside[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in beside]
        found[node.target.id] = (plain(node.annotation), " ".join(lines))
    return found


def words(comment: str) -> str:
    """A comment without its sign."""
    return comment.removeprefix("#").strip()


if __name__ == "__main__":
    sys.exit(main())
