"""What a compiled program sends between devices, and what it computes meanwhile, read from its scheduled HLO text.

In scheduled HLO the instructions of a computation are in the order in which they are issued. An asynchronous transfer
is a pair of instructions, `-start` and `-done`; what is between them runs while the transfer is under way.
"""

import math
import re
from dataclasses import dataclass

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
_COLLECTIVES = ("collective-permute", "all-gather", "all-to-all", "reduce-scatter", "all-reduce")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton|__cublas|__cudnn)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Transfer:
    """One collective operation of the program, as one device takes part in it."""

    name: str  # of the instruction
    kind: str  # collective-permute, all-gather, all-to-all, reduce-scatter or all-reduce
    sent_bytes: int  # by one device, each time
    times: int  # that it runs: the trip counts of the loops around it
    hidden_by: tuple[str, ...]  # instructions with matrix products that run meanwhile; () where all waits for it
    operation: str = ""  # what the program calls it, such as jit(f)/shard_map/ppermute; a ring's end so


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    rest: str  # operands and attributes

    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        lists = re.findall(r"(?:calls|body|to_apply|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)", self.rest)
        return [name for each in lists for name in re.findall(r"[\w.\-]+", each)]


def read_transfers(scheduled_hlo: str) -> list[Transfer]:
    """All collective operations of `compiled.as_text()`, in the order of the text."""
    program = _parse(scheduled_hlo)
    works = {name: False for name in program}
    while (found := {name for name in program if not works[name] and _has_product(program[name], works)}) != set():
        works |= dict.fromkeys(found, True)
    times = _times(program)
    partitions = re.search(r"num_partitions=(\d+)", scheduled_hlo)
    devices = int(partitions[1]) if partitions else 1
    return [
        transfer
        for name, body in program.items()
        for index in range(len(body))
        if (transfer := _transfer(body, index, times.get(name, 1), works, devices)) is not None
    ]


def _parse(text: str) -> dict[str, list[_Instruction]]:
    program: dict[str, list[_Instruction]] = {}
    body: list[_Instruction] = []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            body = program.setdefault(start[1], [])
        elif found := _INSTRUCTION.match(line):
            body.append(_Instruction(*found.groups()))
    return program


def _has_product(body: list[_Instruction], works: dict[str, bool]) -> bool:
    return any(_is_product(instruction, works) for instruction in body)


def _is_product(instruction: _Instruction, works: dict[str, bool]) -> bool:
    """Whether it is a matrix product, a Pallas kernel, or runs a computation that contains one."""
    if instruction.op in ("convolution", "dot") or _KERNEL.search(instruction.rest) is not None:
        return True
    return any(works.get(name, False) for name in instruction.called())


def _times(program: dict[str, list[_Instruction]]) -> dict[str, int]:
    """How often each computation runs. Loops without a constant count (over blocks) send nothing: they count 1."""
    own: dict[str, tuple[str, int]] = {}  # computation -> the one that runs it, and how often
    for name, body in program.items():
        for instruction in body:
            condition = re.search(r"condition=%?([\w.\-]+)", instruction.rest)
            count = _turns(instruction, program.get(condition[1], [])) if condition else 1
            own |= {inner: (name, count) for inner in instruction.called()}

    def total(name: str) -> int:
        outer, count = own.get(name, (None, 1))
        return count * (1 if outer is None else total(outer))

    return {name: total(name) for name in program}


def _turns(loop: _Instruction, condition: list[_Instruction]) -> int:
    """How often a loop runs: as XLA notes, or the constant that a scan's counter, which starts at 0, stays below."""
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1])
    constants = [x for x in condition if x.op == "constant" and x.type.startswith("s32[]")]
    return int(constants[0].rest.partition(")")[0]) if len(constants) == 1 else 1


def _transfer(
    body: list[_Instruction], index: int, times: int, works: dict[str, bool], devices: int
) -> Transfer | None:
    this = body[index]
    kind = this.op.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return None
    hidden: tuple[str, ...] = ()
    if this.op.endswith("-start"):
        done = next(i for i in range(index, len(body)) if body[i].op == f"{kind}-done" and _takes(body[i], this))
        hidden = tuple(x.name for x in body[index:done] if _is_product(x, works))
    operation = re.search(r'op_name="([^"]*)"', this.rest)
    return Transfer(this.name, kind, _sent(kind, this, devices), times, hidden, operation[1] if operation else "")


def _takes(instruction: _Instruction, operand: _Instruction) -> bool:
    return re.search(rf"(?<![\w.\-]){re.escape(operand.name)}(?![\w.\-])", instruction.rest) is not None


def _sent(kind: str, instruction: _Instruction, devices: int) -> int:
    """Bytes that a device sends (Chan et al. 2007, the bandwidth-optimal algorithms).

    Of n devices, for a result of b bytes: b (n - 1) / n for all-gather and all-to-all, b (n - 1) for reduce-scatter,
    2 b (n - 1) / n for all-reduce.
    """
    # A start's type is (operands, results), and on TPUs two numbers of the runtime's after a permute's.
    sizes = _sizes(instruction.type.replace("u32[]", ""))
    if instruction.op.endswith("-start") and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]
    result = sum(sizes)
    devices = _group(instruction.rest) or devices
    others = (devices - 1) / devices
    factor = {
        "collective-permute": 1.0,
        "all-gather": others,
        "all-to-all": others,
        "reduce-scatter": devices - 1,
        "all-reduce": 2 * others,
    }[kind]
    return round(result * factor)


def _sizes(type_: str) -> list[int]:
    """Bytes of each array in an HLO type."""
    arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", type_)
    return [_WIDTH.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in arrays]


def _group(attributes: str) -> int | None:
    """Devices that take part together; None where it is not written, and all do."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    return None
