"""What fills a device's memory, from the files that XLA writes about the buffers it has assigned.

Asked for with the compiler option `xla_dump_to`; written whether or not the program fits. The sizes that
`Compiled.memory_analysis` calls temporary count some buffers that are never there at once; these files are
what the TPU compiler checks against the device's memory. Of GPUs they are called `*.sm_9.0a_gpu_after_optimizations*`.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringrl.planner.hlo_sources import Sources

_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(\{[\d,]*\})? (?:\(phi\) )?@\d+> \(size=(\d+),offset=(\d+)\): (\S+?)[{ ]")
_LIFE = re.compile(r"^\s*(\S+\{[\d,]*\}):(\d+)-(\d+)$", re.MULTILINE)
_SPACE = re.compile(r"^Memory Space: .*\(color=(\d+)\)\nTotal bytes: (\d+)", re.MULTILINE)
_HBM, _HOST = "0", "5"  # memory spaces of XLA
_SMALL = 2**16
"""Buffers below this many bytes are left out: they are thousands, and together a few MiB."""

_Place = tuple[int, int]  # offset and size in the one allocation of temporaries


@dataclass(frozen=True)
class Buffer:
    """A buffer at the moment when the temporaries take most bytes."""

    bytes: int
    shape: str  # dtype and dimensions on one device, such as bf16[24,1,64000,1024]
    made_by: tuple[str, ...]  # the functions of the source that make it, `file:function`, the innermost first

    def card(self) -> dict:
        """Bytes, shape and the function of this project that makes it, for JSON."""
        ours = next((name for name in self.made_by if name.startswith(("ringrl/", "agents/"))), None)
        return {"bytes": self.bytes, "shape": self.shape, "made_by": ours}

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
    """The memory of the one program that the compiler reported on in `folder`; None where it failed before that."""
    reports = [next(folder.glob(f"*[._]after_optimizations{end}"), None) for end in _REPORTS]
    if None in reports:
        return None
    usage, assignment, lives, program = (path.read_text() for path in reports if path is not None)
    spaces: dict[str, int] = defaultdict(int)
    for color, total in _SPACE.findall(usage):
        spaces[color] += int(total)
    return Memory(spaces[_HBM], spaces[_HOST], tuple(_at_peak(assignment, lives, Sources(program))))


_REPORTS = ("-memory-usage-report.txt", "-buffer-assignment.txt", "-live-range.txt", ".txt")


def _at_peak(assignment: str, lives: str, sources: Sources) -> list[Buffer]:
    """The temporaries at the moment of the program's schedule at which they take most bytes."""
    values = dict(_temporaries(assignment))
    spans = {name: (int(begin), int(end)) for name, begin, end in _LIFE.findall(lives) if name in values}
    begins, ends = defaultdict(list), defaultdict(list)
    for name, (begin, end) in spans.items():
        begins[begin].append(name)
        ends[end + 1].append(name)
    alive: Counter[_Place] = Counter()  # values at one offset are one buffer
    size, most, peak, found = 0, 0, 0, []
    for moment in sorted({*begins, *ends}):
        for name in ends[moment]:
            alive[values[name][0]] -= 1
        for name in begins[moment]:
            alive[values[name][0]] += 1
        alive = +alive
        size = sum(length for _, length in alive)
        if size > most:
            most, peak, found = size, moment, list(alive)
    residents = defaultdict(list)
    for name, (begin, end) in spans.items():
        residents[values[name][0]].append((max(begin - peak, peak - end, 0), name))
    buffers = [_describe(place, sorted(residents[place]), values, sources) for place in found]
    return sorted(buffers, key=lambda buffer: -buffer.bytes)


def _describe(place: _Place, residents: list[tuple[int, str]], values: dict, sources: Sources) -> Buffer:
    """The buffer at an offset. A loop's carry has no maker: then it is that of the value nearest in time there.

    Args:
        place: offset and size.
        residents: all values at this offset, by their distance in time from the moment of the peak.
        values: place and shape by name.
        sources: of the program.
    """
    makers = (sources.of(name.partition("{")[0]) for _, name in residents)
    return Buffer(place[1], values[residents[0][1]][1], next(filter(None, makers), ()))


def _temporaries(assignment: str) -> Iterator[tuple[str, tuple[_Place, str]]]:
    """name{index} -> ((offset, size), shape) of the values in HBM's one allocation of temporaries."""
    inside = False
    for line in assignment.splitlines():
        if line.startswith("allocation"):
            inside = "preallocated-temp" in line and "color" not in line
        elif inside and (found := _VALUE.match(line)) is not None:
            name, index, size, offset, shape = found.groups()
            if int(size) >= _SMALL:
                yield name + (index or "{}"), ((int(offset), int(size)), shape)


def kinds_of(memory: Memory, arguments: dict[str, int], layers: int, gradients: set[tuple[int, ...]]) -> dict[str, int]:
    """Bytes by kind, the largest first; they add up to `memory.hbm`.

    Args:
        memory: from `read_memory`.
        arguments: bytes of parameters, optimiser state and batch on one device.
        layers: of the model; buffers stacked so high are saved by the forward pass for the backward.
        gradients: shapes on one device of the parameters of all layers; buffers of them are gradients or copies.
    """
    kinds: dict[str, int] = defaultdict(int, arguments)
    for buffer in memory.temporaries:
        kinds[_kind(buffer, layers, gradients)] += buffer.bytes
    kinds["gaps and small buffers"] = max(memory.hbm - sum(kinds.values()), 0)
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def is_kept(buffer: Buffer, layers: int) -> bool:
    """Whether it is stacked over the layers: saved by the forward pass for the backward, or matrices."""
    return layers > 1 and buffer.dimensions[:1] == (layers,) and math.prod(buffer.dimensions[1:]) > 1


def _kind(buffer: Buffer, layers: int, gradients: set[tuple[int, ...]]) -> str:
    if buffer.dimensions in gradients:
        return "gradients"
    if is_kept(buffer, layers):
        return "kept for the backward pass"
    for function in buffer.made_by:
        for pattern, kind in _KINDS:
            if re.search(pattern, function):
                return kind
    return "other"


_KINDS = (
    (r"^ringrl/attention/|:Layer\.attention|:QKVProjection\.|:rotate", "attention"),
    (r":Layer\.output_and_mlp|:OutputAndMLP\.", "feed-forward"),
    (r"^ringrl/model/sharding.py:(gather|_whole)", "gathered parameters"),
    (r"^ringrl/model/(tokens|token_ids).py:", "embedding"),
    (r"^ringrl/model/output_heads.py:|:HeadProjection\.|:Transformer\.losses\.", "head and loss"),
    (r":Transformer\._features", "residual stream"),
    (r"^optax/", "optimiser"),
)
"""Function that makes a buffer -> what it belongs to. The innermost function that matches counts."""
