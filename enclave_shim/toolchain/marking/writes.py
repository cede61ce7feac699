"""What an instruction writes to memory: where, and how much.

Everything that LLVM IR can write memory with is named here. What is not known to be harmless or
understood is refused with a sentence, never passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from optmigd.enclave_shim.toolchain.marking.assembly import may_write_anywhere
from optmigd.enclave_shim.toolchain.marking.ir import NAME, Instruction, closing, split_operands
from optmigd.enclave_shim.toolchain.marking.types import Types

MOST_INLINE_BYTES = 4096
"""Block copies up to this size may be expanded in place; larger ones are always a call."""

ALWAYS_INLINE_BYTES = 32
"""Block copies up to this size are never a call."""

# Assembly in libc and in the unwinder that writes through its first argument: most bytes.
ASSEMBLY_FUNCTIONS = {
    "@setjmp": 200,
    "@_setjmp": 200,
    "@__setjmp": 200,
    "@sigsetjmp": 200,
    "@__sigsetjmp": 200,
    "@fegetenv": 32,
    "@__unw_getcontext": 1024,
    "@unw_getcontext": 1024,
}

_ALIGN = re.compile(r"\balign (\d+)")
_CALLEE = re.compile(rf"([@%]{NAME})\(")
_ASM = re.compile(r'\basm (?:[a-z]+ )*"((?:[^"\\]|\\.)*)", "([^"]*)"\(')
_EXPRESSION = re.compile(r" (?:getelementptr|inttoptr|bitcast|addrspacecast)\b")
_ORDERING = re.compile(
    r" (?:syncscope\(\"[^\"]*\"\) ?)?"
    r"(?:unordered|monotonic|acquire|release|acq_rel|seq_cst)\b.*"
)
_ELEMENT = re.compile(r"\belementtype\(")
_COUNT = re.compile(r"^i64 (?:noundef )?(\d+)$")

# Intrinsics that write no memory and are not calls of libc either, so the slots stay as they are.
_QUIET = re.compile(
    r"@llvm\.(?:dbg|lifetime|assume|experimental\.(?:noalias|constrained)|expect|ctlz|cttz|ctpop"
    r"|bswap|bitreverse|abs|[su](?:max|min)|fsh[lr]|fma|fmuladd|sqrt|fabs|copysign|m(?:in|ax)num"
    r"|m(?:in|ax)imum|floor|ceil|trunc|l?l?rint|nearbyint|l?l?round|roundeven|is\.fpclass"
    r"|is\.constant|[su](?:add|sub|mul|shl)\.(?:with\.overflow|sat)|vector"
    r"|masked\.(?:load|gather|expandload)|objectsize|stack(?:save|restore)|returnaddress"
    r"|frameaddress|addressofreturnaddress|threadlocal\.address|prefetch|invariant|launder|strip"
    r"|ptrmask|readcyclecounter|trap|ubsantrap|debugtrap|eh\.typeid|va_end|sideeffect|donothing"
    r"|scmp|ucmp|canonicalize|arithmetic\.fence|type\.test|public\.type\.test|[gs]et\.rounding"
    r"|allow|annotation|ptr\.annotation|var\.annotation|localescape|localrecover"
    r"|vp\.(?:load|gather)|pseudoprobe|stepvector|get\.active\.lane\.mask|convert"
    r"|fpto[su]i\.sat|load\.relative)(?:\.|$)"
)
# Those that become calls of libm, which has writes of its own.
_LIBRARY = re.compile(
    r"@llvm\.(?:sin|cos|tan|asin|acos|atan2?|sinh|cosh|tanh|sincos(?:pi)?|pow|powi|exp2?|exp10"
    r"|log|log2|log10|ldexp|frexp|modf)(?:\.|$)"
)
# x86 intrinsics with a pointer that only read.
_X86_READS = re.compile(
    r"@llvm\.x86\.(?:.*(?:load|gather|prefetch|ldu|ldmxcsr|rstor|clflush|clwb|cldemote|monitor"
    r"|lddqu|expand|broadcast))"
)
_X86_WRITES = {
    "@llvm.x86.sse.stmxcsr": 4,
    "@llvm.x86.fxsave": 512,
    "@llvm.x86.fxsave64": 512,
    "@llvm.x86.avx.maskstore.ps": 16,
    "@llvm.x86.avx.maskstore.pd": 16,
    "@llvm.x86.avx.maskstore.ps.256": 32,
    "@llvm.x86.avx.maskstore.pd.256": 32,
    "@llvm.x86.avx2.maskstore.d": 16,
    "@llvm.x86.avx2.maskstore.q": 16,
    "@llvm.x86.avx2.maskstore.d.256": 32,
    "@llvm.x86.avx2.maskstore.q.256": 32,
    "@llvm.x86.directstore32": 4,
    "@llvm.x86.directstore64": 8,
    "@llvm.x86.movdir64b": 64,
    "@llvm.x86.aadd32": 4,
    "@llvm.x86.aadd64": 8,
    "@llvm.x86.sse2.maskmov.dqu": 16,
}
_X86_SCATTER = re.compile(r"@llvm\.x86\.avx512\.(?:mask\.)?scatter")
_MASKMOV_POINTER = 2  # of maskmov.dqu's arguments


@dataclass(frozen=True)
class Write:
    """A write of at most `bytes` bytes at an address, which is a multiple of `align`.

    Attributes:
        lanes: a scatter of so many: `address` is an operand, a vector of addresses, or the address
            that `index` times `scale` is added to.
        mask: an operand: which lanes are written.
        index: an operand, a vector of i32 or i64, or "".
        scale: what an index counts, in bytes.
    """

    address: str
    bytes: int
    align: int
    lanes: int = 0
    mask: str = ""
    index: str = ""
    scale: int = 1


@dataclass
class Effect:
    """What an instruction does to memory.

    Attributes:
        writes: to be marked before it.
        calls: whether it may run marks of its own, so that no slot outlives it.
        refused: why it cannot be tracked, or "".
    """

    writes: list[Write] = field(default_factory=list)
    calls: bool = False
    refused: str = ""


NOTHING = Effect()


def effect(instruction: Instruction, types: Types) -> Effect:
    """What an instruction writes.

    Raises:
        ValueError: it is not understood (a form of IR this pass does not know).
    """
    opcode = instruction.opcode
    if opcode == "store":
        written = _store(instruction.rest, types)
        return Effect([written]) if written.bytes else NOTHING
    if opcode in ("atomicrmw", "cmpxchg"):
        return Effect([_atomic(instruction.rest, types)])
    if opcode in ("call", "invoke", "callbr"):
        return _call(instruction, types)
    if opcode == "va_arg":
        return Effect([Write(_pointer(split_operands(instruction.rest)[0]), 24, 8)])
    return NOTHING


def _pointer(operand: str) -> str:
    """The address in an operand "ptr attributes %x"."""
    text = operand.strip()
    if not text.startswith("ptr ") or "addrspace(" in text:
        raise ValueError(f"no ordinary pointer: {operand}")
    if expression := _EXPRESSION.search(text):
        return text[expression.start() + 1 :]
    return text.rsplit(" ", 1)[1]


def _ordering(operand: str) -> str:
    """An atomic's operand without what follows the address."""
    return _ORDERING.sub("", operand)


def _store(rest: str, types: Types) -> Write:
    text = re.sub(r"^(?:atomic )?(?:volatile )?", "", rest)
    parts = split_operands(text)
    stored = types.read(parts[0])[0]
    align = next((int(m[1]) for part in parts[2:] if (m := _ALIGN.match(part))), 1)
    return Write(_pointer(_ordering(parts[1])), stored.bytes, align)


def _atomic(rest: str, types: Types) -> Write:
    parts = split_operands(re.sub(r"^(?:weak )?(?:volatile )?", "", rest))
    # "cmpxchg ptr %p, ty a, ty b ..." or "atomicrmw add ptr %p, ty v ..."
    pointer = parts[0][parts[0].index("ptr") :]
    written = types.read(parts[1])[0]
    return Write(_pointer(pointer), written.bytes, written.bytes)


def _arguments(rest: str, at: int) -> list[str]:
    inside = rest[at + 1 : closing(rest, at)]
    return split_operands(inside) if inside.strip() else []


def _call(instruction: Instruction, types: Types) -> Effect:
    rest = instruction.rest
    assembly = _ASM.search(rest)
    if assembly is not None:
        return _assembly(assembly, rest, types)
    match = _CALLEE.search(rest)
    if match is None:
        raise ValueError(f"a call of nothing known: {rest}")
    callee = match[1]
    if not callee.startswith("@llvm."):
        if callee in ASSEMBLY_FUNCTIONS:
            first = _arguments(rest, match.end() - 1)[0]
            return Effect([Write(_pointer(first), ASSEMBLY_FUNCTIONS[callee], 8)], calls=True)
        return Effect(calls=True)
    if _QUIET.match(callee):
        return NOTHING
    if _LIBRARY.match(callee):
        return Effect(calls=True)
    return _intrinsic(callee, _arguments(rest, match.end() - 1), types)


def _intrinsic(callee: str, arguments: list[str], types: Types) -> Effect:
    name = callee.split(".")
    if name[1] in ("memcpy", "memmove", "memset"):
        count = _COUNT.match(arguments[2])
        if count is None or int(count[1]) > MOST_INLINE_BYTES:
            return Effect(calls=True)  # of our own memcpy, which marks
        writes = [Write(_pointer(arguments[0]), int(count[1]), _align_of(arguments[0]))]
        return Effect(writes if int(count[1]) else [], calls=int(count[1]) > ALWAYS_INLINE_BYTES)
    if name[1] == "masked" and name[2] in ("store", "scatter", "compressstore"):
        return _masked(name[2], arguments, types)
    if name[1] == "vp" and name[2] == "store":
        stored = types.read(arguments[0])[0]
        return Effect([Write(_pointer(arguments[1]), stored.bytes, 1)])
    if name[1] in ("va_start", "va_copy"):
        return Effect([Write(_pointer(arguments[0]), 24, 8)])
    if callee in _X86_WRITES:
        where = _MASKMOV_POINTER if callee.endswith("maskmov.dqu") else 0
        return Effect([Write(_pointer(arguments[where]), _X86_WRITES[callee], 1)])
    if _X86_SCATTER.match(callee) and len(arguments) == 5:
        return _x86_scatter(arguments, types)
    pointers = [one for one in arguments if one.startswith(("ptr", "<")) and "ptr" in one]
    if name[1] == "x86" and (not pointers or _X86_READS.match(callee)):
        return NOTHING
    return Effect(calls=True, refused=f"the intrinsic {callee[1:]}")


def _align_of(argument: str) -> int:
    match = _ALIGN.search(argument)
    return int(match[1]) if match else 1


def _masked(kind: str, arguments: list[str], types: Types) -> Effect:
    stored = types.read(arguments[0])[0]
    align = _align_of(arguments[1])
    if kind != "scatter":
        return Effect([Write(_pointer(arguments[1]), stored.bytes, align)])
    lanes = _lanes(arguments[0])
    vector = arguments[1][: arguments[1].index(">") + 1] + " " + arguments[1].rsplit(" ", 1)[1]
    one = stored.bytes // lanes
    return Effect([Write(vector, one, align, lanes=lanes, mask=arguments[-1])])


def _x86_scatter(arguments: list[str], types: Types) -> Effect:
    """base, mask, indices, values, scale; in AVX-512's intrinsics."""
    base, mask, index, values, scale = arguments
    lanes = min(_lanes(index), _lanes(values))
    one = types.read(values)[0].bytes // _lanes(values)
    factor = int(scale.rsplit(" ", 1)[1])
    return Effect([Write(_pointer(base), one, 1, lanes, mask, index, factor)])


def _lanes(operand: str) -> int:
    match = re.match(r"<(\d+) x ", operand)
    if match is None:
        raise ValueError(f"no vector: {operand}")
    return int(match[1])


def _assembly(match: re.Match[str], rest: str, types: Types) -> Effect:
    template, constraints = match[1], match[2]
    if may_write_anywhere(template, constraints):
        text = template.replace("\\0A", "; ").replace("\\09", " ")
        return Effect(calls=True, refused=f"inline assembly that may write memory: {text[:80]}")
    writes = []
    outputs = [one for one in constraints.split(",") if one.startswith("=") and "*" in one]
    arguments = _arguments(rest, match.end() - 1)
    for argument, _ in zip(arguments, outputs, strict=False):
        element = _ELEMENT.search(argument)
        if element is None:
            return Effect(refused="inline assembly with an output of unknown size")
        size = types.read(argument[element.end() :])[0]
        writes.append(Write(_pointer(argument), size.bytes, 1))
    # In a system call a signal's handler may run: the runtime's gate keeps the slots.
    return Effect(writes)
