"""Which inline assembly can be tracked, and which is refused.

An assembly text whose operands are registers, immediates and the operands that the compiler gave it
can write no memory but its own output operands, which the pass marks. One that forms an address of
its own, moves strings or calls could write anywhere. A few that are known are let through.
"""

from __future__ import annotations

import re

# Their writes are the runtime's to mark, or they have none.
_KNOWN = re.compile(
    r"syscall|pause|mfence|lfence|sfence|rdtscp?|rdpid|cpuid|xgetbv|nop\w*|endbr64|hlt|int3|ud2"
    r"|prefetch\w+|clflush\w*|clwb|serialize|(?:rep(?:e|z)?;?\s*nop)"
)
# May write through registers that the text need not name.
_HIDDEN = re.compile(
    r"(?:rep\w*|movs[bwlqd]?|stos[bwlqd]?|ins[bwl]|call\w*|jmp\w*|ret\w*|iret\w*|enter|maskmov\w+"
    r"|vmaskmov\w+|vpscatter\w+|vscatter\w+|xsave\w*|fxsave\w*|int|sysenter|cmpxchg8b|cmpxchg16b)\b"
)
_PREFIX = re.compile(r"(?:lock|data16|\{\w+\})[\s;]+")
_OPERAND = re.compile(r"\*?%%?\w+|\$\$?[-\w]+|\$\{\w+(?::\w)?\}|[-+]?(?:0x)?[0-9a-fA-F]+[fb]?")
_TRAILING_LABEL = re.compile(r"\d+:\s*")


def may_write_anywhere(template: str, constraints: str) -> bool:
    """Whether this inline assembly may write memory that its operands do not name."""
    if "~{memory}" not in constraints and "=*" not in constraints:
        return False  # it promised
    for statement in re.split(r"\\0A|\\09|\n|;", template):
        text = _TRAILING_LABEL.sub("", statement.split("#")[0]).strip()
        while match := _PREFIX.match(text + " "):
            text = text[match.end() :].strip()
        if not text or text == "lock" or _KNOWN.fullmatch(text.split(" ")[0]):
            continue
        if text.startswith(".") or _HIDDEN.match(text):
            return True
        _, _, operands = text.partition(" ")
        operands = operands.replace("\t", " ").strip()
        if operands and not all(_OPERAND.fullmatch(one.strip()) for one in operands.split(",")):
            return True
    return False
