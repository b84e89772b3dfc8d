"""What fills a device's memory, from the files that the TPU compiler writes about the buffers it has assigned.

Asked for with the compiler option `xla_dump_to`; written whether or not the program fits. The sizes that
`Compiled.memory_analysis` calls temporary count some buffers that are never there at once; these files are what the
compiler decides by.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(\{[\d,]*\})? (?:\(phi\) )?@\d+> \(size=(\d+),offset=(\d+)\): (\S+?)[{ ]")
_LIFE = re.compile(r"^\s*(\S+\{[\d,]*\}):(\d+)-(\d+)$", re.MULTILINE)
_SPACE = re.compile(r"^Memory Space: .*\(color=(\d+)\)\nTotal bytes: (\d+)", re.MULTILINE)
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_HBM, _HOST = "0", "5"  # memory spaces of XLA:TPU
_SMALL = 2**16
"""Buffers below this many bytes are left out: they are thousands, and together a few MiB."""


@dataclass(frozen=True)
class Buffer:
    """A buffer that is there when most are."""

    bytes: int
    shape: str  # dtype and dimensions on one device, such as bf16[24,1,64000,1024]
    operation: str  # of the program, with the names of its parts, such as jit(train_step)/jvp()/while/body/attention

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Those of the shape."""
        return tuple(int(n) for n in re.findall(r"\d+", self.shape.partition("[")[2]))


@dataclass(frozen=True)
class Memory:
    """One device's memory, bytes."""

    hbm: int  # all that the program occupies: arguments, results, temporaries, and gaps between them
    host: int
    temporaries: tuple[Buffer, ...]  # in HBM at the moment when they are most, the largest first


def read_memory(folder: Path) -> Memory | None:
    """The memory of the one program that the compiler reported on in `folder`; None where it got not so far."""
    reports = [next(folder.glob(f"*.after_optimizations{end}"), None) for end in _REPORTS]
    if None in reports:
        return None
    usage, assignment, lives, program = (path.read_text() for path in reports if path is not None)
    spaces: dict[str, int] = defaultdict(int)
    for color, total in _SPACE.findall(usage):
        spaces[color] += int(total)
    operations = dict(_OPERATION.findall(program))
    return Memory(spaces[_HBM], spaces[_HOST], tuple(_at_peak(assignment, lives, operations)))


_REPORTS = ("-memory-usage-report.txt", "-buffer-assignment.txt", "-live-range.txt", ".txt")


def _at_peak(assignment: str, lives: str, operations: dict[str, str]) -> list[Buffer]:
    """The temporaries at the moment of the program's schedule at which they take most bytes."""
    values = dict(_temporaries(assignment))
    begins, ends = defaultdict(list), defaultdict(list)
    for name, begin, end in _LIFE.findall(lives):
        if name in values:
            begins[int(begin)].append(name)
            ends[int(end) + 1].append(name)
    alive: dict[tuple[int, int], list[str]] = {}  # values that share a place are one buffer
    size, most, found = 0, 0, []
    for moment in sorted({*begins, *ends}):
        for name in ends[moment]:
            place, _ = values[name]
            alive[place].remove(name)
            if not alive[place]:
                del alive[place]
                size -= place[1]
        for name in begins[moment]:
            place, _ = values[name]
            size += 0 if place in alive else place[1]
            alive.setdefault(place, []).append(name)
        if size > most:
            most, found = size, [(place[1], names[0]) for place, names in alive.items()]
    buffers = [Buffer(bytes_, values[name][1], _operation(name, operations)) for bytes_, name in found]
    return sorted(buffers, key=lambda buffer: -buffer.bytes)


def _temporaries(assignment: str) -> Iterator[tuple[str, tuple[tuple[int, int], str]]]:
    """name{index} -> ((offset, size), shape) of the values in HBM's one allocation of temporaries."""
    inside = False
    for line in assignment.splitlines():
        if line.startswith("allocation"):
            inside = "preallocated-temp" in line and "color" not in line
        elif inside and (found := _VALUE.match(line)) is not None:
            name, index, size, offset, shape = found.groups()
            if int(size) >= _SMALL:
                yield name + (index or "{}"), ((int(offset), int(size)), shape)


def _operation(value: str, operations: dict[str, str]) -> str:
    return operations.get(value.partition("{")[0], "")


def kinds_of(memory: Memory, arguments: dict[str, int], layers: int, gradients: set[tuple[int, ...]]) -> dict[str, int]:
    """Bytes by kind, the largest first; they add up to `memory.hbm`.

    Args:
        memory: from `read_memory`.
        arguments: bytes of parameters, optimiser state and batch on one device.
        layers: of the model; buffers stacked so high are kept from one pass through the layers for the other.
        gradients: shapes on one device of the parameters of all layers; what has them is a gradient or a copy.
    """
    kinds: dict[str, int] = defaultdict(int, arguments)
    for buffer in memory.temporaries:
        kinds[_kind(buffer, layers, gradients)] += buffer.bytes
    kinds["gaps and small buffers"] = max(memory.hbm - sum(kinds.values()), 0)
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _kind(buffer: Buffer, layers: int, gradients: set[tuple[int, ...]]) -> str:
    if buffer.dimensions in gradients:
        return "gradients"
    if layers > 1 and buffer.dimensions[:1] == (layers,) and math.prod(buffer.dimensions[1:]) > 1:
        return "kept for the backward pass"
    scopes = {"attention": "attention", "feed_forward": "feed-forward", "embed": "embedding", "read": "head and loss"}
    inside = re.split(r"[/()]", buffer.operation)
    return next((kind for scope, kind in scopes.items() if scope in inside), "other")
