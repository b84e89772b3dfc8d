"""JSON, YAML and CSV: a file's content in checked types, or one UserError that names the file, the key and the reason.

Every such file is read here. What a JSON file must contain is a type, declared where the file is described: mostly a
TypedDict of the keys that ringrl uses, with `RECORD` as its configuration, or a dataclass. Other keys stay as they are,
so that a file may say more than is needed. Nothing is converted: "3" is no number, true no 1, and NaN, infinity and
whole numbers beyond `WHOLE` are none either, as are text and paths with NUL or half a character in them.
"""

import codecs
import csv
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ringrl.errors import UserError
from ringrl.manifest import verified_bytes

RECORD = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
"""Of the TypedDicts that describe a file: `@with_config(RECORD)`."""

WHOLE = 2**53
"""The whole numbers below are those that every JSON reader has in common, and that fit an int64 however multiplied by
the size of a row."""

Count = Annotated[int, Field(ge=0, lt=WHOLE)]
"""A whole number from 0 on."""

_YAML_BYTES, _YAML_DEPTH, _YAML_VALUES = 2**18, 32, 10_000
"""A configuration is far smaller. PyYAML reads 100 kB a second, and a few lines of aliases are millions of values."""

Kind = TypeVar("Kind")


@with_config(RECORD)
class ObjectRecord(TypedDict):
    """Any object."""


def _refuse_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


Text = Annotated[str, AfterValidator(_refuse_nul)]
"""A name or a path."""


def read_bytes(path: Path, advice: str) -> bytes:
    """The content of a file, which is verified where its folder has hashes (`ringrl.manifest`).

    Raises:
        UserError: it is missing, cannot be read, or is not what was written; `advice` says what to do.
    """
    try:
        return verified_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from None


def read_json(path: Path, kind: type[Kind], advice: str) -> Kind:
    """What a JSON file contains.

    Args:
        path: the file.
        kind: what it must contain; `ObjectRecord`: any object; `object`: any value.
        advice: what to do where it does not, such as "train again".

    Raises:
        UserError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, advice), kind, str(path), advice)


def parse_json(content: bytes, kind: type[Kind], where: str, advice: str) -> Kind:
    """What a JSON text in UTF-8 contains; `where` names its source.

    Raises:
        UserError: it is not JSON, or not of that kind; names the line or the key.
    """
    try:
        return _adapter(kind).validate_json(content.removeprefix(codecs.BOM_UTF8), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {first_complaint(error)}; {advice}") from None


@cache
def _adapter(kind: type) -> Any:
    return TypeAdapter(kind)


def first_complaint(error: ValidationError, section: str = "") -> str:
    """Pydantic's first complaint in one line, with the key as the file has it, which is in `section`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(filter(None, (section, *(str(part) for part in first["loc"]))))
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] == "extra_forbidden":
        message = "unknown key; check its spelling"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return (f"`{key}`: " if key else "") + f"{message}{more}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: of texts to plain values, as `parse_yaml` has them.

    Raises:
        UserError: as `read_bytes` and `parse_yaml`; or it is no mapping.
    """
    content = read_bytes(path, "check the path")
    if len(content) > _YAML_BYTES:
        raise UserError(f"{path}: {len(content)} bytes; a configuration has at most {_YAML_BYTES}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config must be a mapping of sections, such as `data:`, `agent:`, `training:`")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """A YAML text as null, true, numbers, text, lists and mappings of texts; a date is text. `where` names its source.

    Raises:
        UserError: it is not YAML, a key is there twice, or a value is of another kind, too large or too deep; names the
            line or the key.
    """
    try:
        values = yaml.load(text, _PlainLoader)  # noqa: S506  # a safe one
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What is tagged, as `!!int x`, is given to constructors that do not expect it.
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML here: nested too deeply") from None
    _check_plain(values, "", where, [0])
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without dates, which are text, and with every key once."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, but a key that is there twice is an error: one of the two would be lost silently."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_plain(value: Any, key: str, where: str, count: list[int], depth: int = 0) -> None:
    """Raise UserError for what is no plain value; `count` is of the values so far, of which aliases repeat some."""
    count[0] += 1
    if depth > _YAML_DEPTH or count[0] > _YAML_VALUES:
        raise UserError(f"{where}: `{key}`: nested too deeply, or too many values, for a configuration")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UserError(f"{where}: `{key}`: the key {name!r} is not text; write it in quotes")
            _check_plain(name, key, where, count, depth + 1)
            _check_plain(item, f"{key}.{name}".removeprefix("."), where, count, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{key}.{index}".removeprefix("."), where, count, depth + 1)
    elif isinstance(value, str):
        if "\0" in value or not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: `{key}`: text with a NUL or half a character in it")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{where}{f': `{key}`' if key else ''}: a whole number of more than 64 bits")
    elif not isinstance(value, bool | int | float | None):
        raise UserError(f"{where}: `{key}`: a {type(value).__name__}; give text, a number, true, false, null or a list")


def read_csv(path: Path, advice: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not empty, and its cells.

    Raises:
        UserError: as `read_bytes`; or it is not text in UTF-8, or not CSV; names the line.
    """
    content = read_bytes(path, advice)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: is not text in UTF-8 (byte {error.start}); {advice}") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path} line {lines.line_num}: not CSV ({error}); {advice}") from None
        if cells:
            yield lines.line_num, cells
