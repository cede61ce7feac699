"""Make a module mark what it writes: its text in, its text out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optmigd.enclave_shim.toolchain.marking.emit import note_lines
from optmigd.enclave_shim.toolchain.marking.ir import parse
from optmigd.enclave_shim.toolchain.marking.plan import Planner
from optmigd.enclave_shim.toolchain.marking.types import Types

MARKED = "marked"
# A non-temporal store may become visible after later ones, which would break the order that the
# slots rest on; an ordinary store in its place is correct.
_NONTEMPORAL = re.compile(r", !nontemporal !\d+")
_SYMBOLS_ONLY = re.compile(
    r"\s*\.(?:symver|weak|globl|global|hidden|protected|set|type|size|ident|weakref|local|comm)\b"
)
_MODULE_ASM = re.compile(r'^module asm "(.*)"$', re.MULTILINE)


@dataclass(frozen=True)
class Marked:
    """An instrumented module.

    Attributes:
        text: it.
        blockers: why a program with it cannot run under the compiler tracker; empty if it can.
        marks: how many marks it has.
    """

    text: str
    blockers: list[str]
    marks: int


def instrument(text: str, name: str, *, library: bool = False) -> Marked:
    """Insert the marks into a module.

    Args:
        text: optimised LLVM IR.
        name: of its source, for the blockers.
        library: it is part of libc or of the OpenMP runtime, whose assembly is known to write to
            the stack alone; nothing is recorded in it.
    """
    text = _NONTEMPORAL.sub("", text)
    module = parse(text)
    types = Types(module.types)
    before: dict[int, list[str]] = {}
    blockers: list[str] = []
    marks = 0
    for function in module.functions:
        planned = Planner(function, types).plan()
        for line, lines in planned.before.items():
            before.setdefault(line, []).extend(lines)
        blockers.extend(f"{name}: {why}" for why in dict.fromkeys(planned.refused))
        marks += planned.marks
    if any(not _SYMBOLS_ONLY.match(one) for one in _MODULE_ASM.findall(text)):
        blockers.append(f"{name}: assembly outside of a function")
    blockers = list(dict.fromkeys(blockers))
    marked = module.with_insertions(before)
    if not library:
        marked += "\n".join(note_lines([MARKED, *blockers])) + "\n"
    return Marked(marked, blockers, marks)
