"""Which functions of the source an instruction of a compiled program comes from, read from the text of its HLO."""

import re

_HEAD = re.compile(r'^(\d+) "?([^"\n]*)"?$', re.MULTILINE)
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)", re.MULTILINE)
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?(?<=[ )])[a-z][\w\-]*\((.*)$", re.MULTILINE)
_MAX_OPERANDS = 8
"""Operands that are followed from an instruction without a source, such as a copy."""


class Sources:
    """The stack frames of a program's instructions."""

    def __init__(self, hlo: str):
        files = {key: _shorten(name) for key, name in _HEAD.findall(_section(hlo, "FileNames"))}
        functions = dict(_HEAD.findall(_section(hlo, "FunctionNames")))
        self._locations = {
            key: f"{files.get(file, '')}:{functions.get(function, '')}"
            for key, file, function in _LOCATION.findall(_section(hlo, "FileLocations"))
        }
        frames = _FRAME.findall(_section(hlo, "StackFrames"))
        # A frame's parent is written one too high, so that 1 is none.
        self._frames = {int(key): (location, int(parent or 1) - 1) for key, location, parent in frames}
        self._instructions = dict(_INSTRUCTION.findall(hlo))

    def of(self, instruction: str) -> tuple[str, ...]:
        """`file:function` of every frame, the innermost first; () where unknown.

        An instruction that the compiler has added comes from where its first operand does.
        """
        for _ in range(_MAX_OPERANDS):
            rest = self._instructions.get(instruction, "")
            if frame := re.search(r"stack_frame_id=(\d+)", rest):
                return self._stack(int(frame[1]))
            operand = re.match(r"\(*(?:\S+ )?%([\w.\-]+)", rest)
            if operand is None:
                return ()
            instruction = operand[1]
        return ()

    def _stack(self, frame: int) -> tuple[str, ...]:
        stack = []
        while frame in self._frames:
            location, parent = self._frames[frame]
            stack.append(self._locations.get(location, ""))
            frame = parent if parent < frame else 0
        return tuple(stack)


def _section(hlo: str, name: str) -> str:
    """The lines under a heading, up to the next empty one."""
    return (re.search(rf"^{name}\n(.*?)\n\n", hlo, re.MULTILINE | re.DOTALL) or ["", ""])[1]


def _shorten(path: str) -> str:
    """The path inside its package's parent: ringrl/attention/ring.py."""
    found = re.search(r"(?:site-packages/|(?=(?:ringrl|agents)/(?!.*(?:ringrl|agents)/)))(.*)$", path)
    return found[1] if found else path
