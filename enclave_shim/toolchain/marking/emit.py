"""The marks themselves, as lines of LLVM IR around inline assembly.

Inline assembly, because the order 'slot, mark, write' must survive code generation: its memory
clobber is the compiler barrier on both sides. Where the byte of an address's page stands is
`MARKS_BIAS + (address >> 12)` (see `runtime/abi.h`), and it is chosen so that this is one shift
and one displacement. A mark that is set already is left alone: threads that write neighbouring
pages would take the cache line of the marks from each other at every write (PageRank on two
processors: 1.7 times the processor time, 1.06 with one thread).
"""

from __future__ import annotations

from collections.abc import Iterator

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.toolchain.marking.addresses import Address
from optmigd.enclave_shim.toolchain.marking.writes import Write

RUN_SLOTS = 32
"""Slots of the runs of instructions between two calls."""
LOOP_SLOTS = 8
"""Slots of one loop, for as long as it runs."""

_SLOT = "%fs:optmig_slots@tpoff+{}"
_MARKS = f"{abi.MARKS_BIAS}({{}})"
_CLOBBERS = "~{memory},~{dirflag},~{fpsr},~{flags}"
LARGEST_STEP_BYTES = abi.PAGE_BYTES // 2


def _slot(number: int) -> str:
    return _SLOT.format(8 * number)


def _mark(page: str) -> list[str]:
    mark = _MARKS.format(page)
    return [f"cmpb $$0, {mark}", "jne 3f", f"movb $$1, {mark}", "3:"]


def _assembly(lines: list[str]) -> str:
    return "\\0A".join(lines).replace('"', "\\22")


class Emitter:
    """Writes the lines for one function; `names` are new in it."""

    def __init__(self) -> None:
        self._numbers = 0

    def _name(self) -> str:
        self._numbers += 1
        return f"%optmig.{self._numbers}"

    def moved(self, pointer: str, offset: int) -> tuple[list[str], str]:
        """Lines that add a constant to a pointer, and the result."""
        if offset == 0:
            return [], pointer
        name = self._name()
        return [f"  {name} = getelementptr i8, ptr {pointer}, i64 {offset}"], name

    def computed(self, address: Address, instead: dict[str, str]) -> tuple[list[str], str]:
        """Lines that compute an address, with some values replaced, and the result."""
        lines, at = self.moved(instead.get(address.base, address.base), address.offset)
        for value, scale in address.terms:
            product, end = self._name(), self._name()
            lines.append(f"  {product} = mul i64 {instead.get(value, value)}, {scale}")
            lines.append(f"  {end} = getelementptr i8, ptr {at}, i64 {product}")
            at = end
        return lines, at

    def point(self, pointer: str, slot: int) -> list[str]:
        """Mark the one page that an address is in."""
        code = _assembly([f"movq $0, {_slot(slot)}", "shrq $$12, $0", *_mark("$0")])
        call = f'call ptr asm sideeffect "{code}", "=r,0,{_CLOBBERS}"(ptr {pointer})'
        return [f"  {self._name()} = {call}"]

    def span(self, pointer: str, span_bytes: int, slot: int) -> list[str]:
        """Mark the one or two pages of at most 4096 bytes; takes two slots."""
        code = _assembly(
            [
                f"leaq {span_bytes - 1}($0), $1",
                f"movq $0, {_slot(slot)}",
                f"movq $1, {_slot(slot + 1)}",
                "shrq $$12, $0",
                "shrq $$12, $1",
                *_mark("$0"),
                *_mark("$1"),
            ]
        )
        return [
            f"  {self._name()} = call {{ ptr, ptr }} asm sideeffect "
            f'"{code}", "=&r,=&r,0,{_CLOBBERS}"(ptr {pointer})'
        ]

    def crossing(self, pointer: str, span_bytes: int, step_bytes: int, slot: int) -> list[str]:
        """Mark the pages of `span` where this time round enters a new one; takes two slots.

        The address grows by `step_bytes` each time. Going up, a new page was entered if and only if
        the last byte is less than a step into its page; going down, if the first byte is less than
        a step below its page's end. A step that is no power of two is taken for the next larger
        one, which only marks more often.
        """
        step = 1 << (abs(step_bytes) - 1).bit_length()
        edge = span_bytes - 1 if step_bytes > 0 else step
        code = _assembly(
            [
                f"leaq {edge}($1), $0",
                f"testl $${abi.PAGE_BYTES - step}, ${{0:k}}",
                "je 2f",
                "1:",
                ".subsection 1",
                "2:",
                f"movq $1, {_slot(slot)}",
                f"leaq {span_bytes - 1}($1), $0",
                f"movq $0, {_slot(slot + 1)}",
                "shrq $$12, $0",
                *_mark("$0"),
                "movq $1, $0",
                "shrq $$12, $0",
                *_mark("$0"),
                "jmp 1b",
                ".previous",
            ]
        )
        return [
            f"  {self._name()} = call ptr asm sideeffect "
            f'"{code}", "=&r,r,{_CLOBBERS}"(ptr {pointer})'
        ]

    def scatter(self, write: Write) -> list[str]:
        """Mark what a scatter writes, lane by lane as its mask says; takes every run slot.

        A lane that its mask keeps out may have any address; the mark of address 0 stands for it.
        """
        lines = []
        for lane in range(write.lanes):
            lane_lines, pointer = self._lane(write, lane)
            chosen, address = self._name(), self._name()
            lines += lane_lines
            lines.append(f"  {chosen} = extractelement {write.mask}, i64 {lane}")
            lines.append(f"  {address} = select i1 {chosen}, ptr {pointer}, ptr null")
            if write.align < write.bytes:
                lines += self.span(address, write.bytes, 2 * lane)
            else:
                lines += self.point(address, lane)
        return lines

    def _lane(self, write: Write, lane: int) -> tuple[list[str], str]:
        if not write.index:
            pointer = self._name()
            return [f"  {pointer} = extractelement {write.address}, i64 {lane}"], pointer
        index, wide, bytes_, pointer = (self._name() for _ in range(4))
        width = write.index[write.index.index(" x ") + 3 : write.index.index(">")]
        lines = [f"  {index} = extractelement {write.index}, i64 {lane}"]
        if width == "i64":
            wide = index
        else:
            lines.append(f"  {wide} = sext {width} {index} to i64")
        lines.append(f"  {bytes_} = mul i64 {wide}, {write.scale}")
        lines.append(f"  {pointer} = getelementptr i8, ptr {write.address}, i64 {bytes_}")
        return lines, pointer


def note_lines(notes: list[str]) -> Iterator[str]:
    """Module assembly that records notes in the section that an image's tracker is read from."""
    yield 'module asm ".pushsection optmig_marks,\\22aR\\22,@progbits"'
    for note in notes:
        quoted = "".join(
            char if 32 <= ord(char) < 127 and char not in '"\\' else "?" for char in note
        )
        yield f'module asm ".asciz \\22{quoted}\\22"'
    yield 'module asm ".popsection"'
