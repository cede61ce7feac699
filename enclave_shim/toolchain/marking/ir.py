"""Read the text of an LLVM IR module, as far as a pass over its stores needs it.

The text is kept line by line, and new lines are inserted between; nothing else changes. So what is
not understood here passes through untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

NAME = r'(?:[-\w.$]+|"(?:[^"\\]|\\.)*")'
_LABEL = re.compile(rf"({NAME}):")
_INSTRUCTION = re.compile(rf"\s+(?:(%{NAME}) = )?(?:(?:tail|musttail|notail) )?(\w+)(?: (.*))?$")
_METADATA = re.compile(r", ![\w.]+ ?!.*$")
_SUCCESSOR = re.compile(rf"label (%{NAME})")
_TYPE = re.compile(rf"(%{NAME}) = type (.*)")
_TERMINATORS = {
    *("br", "switch", "ret", "unreachable", "invoke", "indirectbr", "callbr", "resume"),
    *("cleanupret", "catchret", "catchswitch"),
}
_PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        line: index of its first line in the module.
        result: the value it defines ("%x"), or "".
        opcode: its name, without tail-call markers.
        rest: what follows the name, without metadata; continuation lines are joined.
    """

    line: int
    result: str
    opcode: str
    rest: str


@dataclass
class Block:
    """A basic block; `name` is "%label", and "" where the entry's label is not written."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[str] = field(default_factory=list)

    @property
    def terminator(self) -> Instruction:
        """The last instruction."""
        return self.instructions[-1]


@dataclass
class Function:
    """A function's header line and its blocks, the entry first."""

    header: str
    blocks: list[Block] = field(default_factory=list)

    def definitions(self) -> dict[str, Instruction]:
        """Every value that an instruction defines."""
        return {
            instruction.result: instruction
            for block in self.blocks
            for instruction in block.instructions
            if instruction.result
        }


@dataclass
class Module:
    """A module: its lines, its named types, the functions it defines."""

    lines: list[str]
    types: dict[str, str]
    functions: list[Function]

    def with_insertions(self, before: dict[int, list[str]]) -> str:
        """The module's text with lines inserted before the given line numbers."""
        out: list[str] = []
        for number, line in enumerate(self.lines):
            out.extend(before.get(number, ()))
            out.append(line)
        return "\n".join(out) + "\n"


def parse(text: str) -> Module:
    """Read a module.

    Raises:
        ValueError: a function does not end.
    """
    lines = text.splitlines()
    types: dict[str, str] = {}
    functions: list[Function] = []
    numbered = iter(enumerate(lines))
    for _, line in numbered:
        if line.startswith("define "):
            functions.append(_function(line, numbered))
        elif line.startswith("%") and (match := _TYPE.match(line)):
            types[match[1]] = match[2]
    return Module(lines, types, functions)


def _function(header: str, numbered: Iterator[tuple[int, str]]) -> Function:
    function = Function(header)
    block = Block("")
    open_brackets = False
    for number, line in numbered:
        if line == "}":
            if block.instructions:
                function.blocks.append(block)
            return function
        if not line or line.lstrip().startswith(("#dbg", ";")):
            continue
        if not line.startswith(" "):
            if match := _LABEL.match(line):
                if block.instructions:
                    function.blocks.append(block)
                block = Block("%" + match[1])
            continue
        if block.instructions and (open_brackets or line.startswith("   ")):
            last = block.instructions[-1]
            last.rest += " " + line.strip()
            block.successors.extend(_SUCCESSOR.findall(line))
            open_brackets = open_brackets and line.strip() != "]"
            continue
        match = _INSTRUCTION.match(line)
        if match is None:
            if block.instructions:  # "  ]" of a switch
                block.instructions[-1].rest += " " + line.strip()
            open_brackets = False
            continue
        opcode, rest = match[2], _METADATA.sub("", match[3] or "")
        open_brackets = opcode == "switch" and rest.endswith("[")
        block.instructions.append(Instruction(number, match[1] or "", opcode, rest))
        if opcode in _TERMINATORS:
            block.successors.extend(_SUCCESSOR.findall(rest))
    raise ValueError("the module ends within a function")


def split_operands(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and no string."""
    parts: list[str] = []
    depth = 0
    start = 0
    quoted = False
    for at, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    parts.append(text[start:].strip())
    return parts


def closing(text: str, at: int) -> int:
    """The index of the bracket that closes the one at `at`.

    Raises:
        ValueError: it is never closed.
    """
    depth = 0
    quoted = False
    for index in range(at, len(text)):
        char = text[index]
        if char == '"':
            quoted = not quoted
        elif not quoted:
            if char in _PAIRS:
                depth += 1
            elif char in ")]}>":
                depth -= 1
                if depth == 0:
                    return index
    raise ValueError(f"a bracket is not closed: {text}")
