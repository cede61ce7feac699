"""Where marks go in a function, and how few of them do.

Between two calls, writes that differ by a constant share one mark (or two, where they may lie on
both sides of a page's end). In an innermost loop without calls, a write whose address does not
change is marked before the loop; one whose address grows by a constant is marked where it enters a
new page. Both rest on slots that nothing else in the loop uses, so they stand for the whole loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.toolchain.marking.addresses import Address, Addresses
from optmigd.enclave_shim.toolchain.marking.emit import (
    LARGEST_STEP_BYTES,
    LOOP_SLOTS,
    RUN_SLOTS,
    Emitter,
)
from optmigd.enclave_shim.toolchain.marking.ir import Block, Function, Instruction
from optmigd.enclave_shim.toolchain.marking.loops import Flow, Loop
from optmigd.enclave_shim.toolchain.marking.types import Types
from optmigd.enclave_shim.toolchain.marking.writes import NOTHING, Effect, Write, effect


@dataclass
class Group:
    """Writes in one run whose addresses differ by constants.

    Attributes:
        line: of the first of them.
        pointer, address: of the first of them.
        low, high: bounds of all, as offsets like `address.offset`.
        align, aligned_at: the best alignment known, and at which offset.
    """

    line: int
    pointer: str
    address: Address
    low: int
    high: int
    align: int
    aligned_at: int

    @property
    def span_bytes(self) -> int:
        """From the first byte to the last."""
        return self.high - self.low

    @property
    def one_page(self) -> bool:
        """Whether its alignment keeps it within one page."""
        return (self.low - self.aligned_at) % self.align + self.span_bytes <= self.align

    def take(self, write: Write, offset: int) -> bool:
        """Add a write, if the group stays within two pages."""
        low, high = min(self.low, offset), max(self.high, offset + write.bytes)
        if high - low > abi.PAGE_BYTES:
            return False
        self.low, self.high = low, high
        if write.align > self.align:
            self.align, self.aligned_at = min(write.align, abi.PAGE_BYTES), offset
        return True


@dataclass
class Planned:
    """What a function needs: lines to be inserted before others, and why it cannot be tracked."""

    before: dict[int, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    marks: int = 0

    def insert(self, line: int, lines: list[str]) -> None:
        """Insert lines before a line, after what was inserted there already."""
        self.before.setdefault(line, []).extend(lines)


class _Loops:
    """The loops of a function that can have slots of their own."""

    def __init__(self, function: Function, effects: dict[int, Effect]) -> None:
        self.of_block: dict[int, Loop] = {}
        self._defined_in: dict[str, int] = {}
        self.used: dict[int, int] = {}
        for number, block in enumerate(function.blocks):
            for instruction in block.instructions:
                if instruction.result:
                    self._defined_in[instruction.result] = number
        for loop in Flow(function).innermost_loops():
            instructions = (
                one for block in loop.blocks for one in function.blocks[block].instructions
            )
            if any(effects.get(one.line, NOTHING).calls for one in instructions):
                continue
            for number in loop.blocks:
                self.of_block[number] = loop

    def changing(self, address: Address, loop: Loop) -> list[str]:
        """The values of an address that are computed within the loop."""
        return [one for one in address.values if self._defined_in.get(one) in loop.blocks]

    def slots(self, loop: Loop) -> int | None:
        """Two slots of the loop's own, or None if there are no more."""
        used = self.used.get(loop.header, 0)
        if used + 2 > LOOP_SLOTS:
            return None
        self.used[loop.header] = used + 2
        return RUN_SLOTS + used


class Planner:
    """Plans one function."""

    def __init__(self, function: Function, types: Types) -> None:
        self._function = function
        self._emitter = Emitter()
        self._planned = Planned()
        self._effects = self._all_effects(types)
        if any(one.writes for one in self._effects.values()):
            self._addresses = Addresses(function, types)
            self._loops = _Loops(function, self._effects)

    def _all_effects(self, types: Types) -> dict[int, Effect]:
        found: dict[int, Effect] = {}
        for block in self._function.blocks:
            for instruction in block.instructions:
                try:
                    what = effect(instruction, types)
                except (ValueError, IndexError) as error:
                    what = Effect(calls=True, refused=f"IR that is not understood: {error}")
                if what.refused:
                    self._planned.refused.append(what.refused)
                if what is not NOTHING:
                    found[instruction.line] = what
        return found

    def plan(self) -> Planned:
        """Where the marks go."""
        if any(one.writes for one in self._effects.values()):
            for number, block in enumerate(self._function.blocks):
                self._block(number, block)
        return self._planned

    def _block(self, number: int, block: Block) -> None:
        run: list[Group] = []
        for instruction in block.instructions:
            what = self._effects.get(instruction.line)
            if what is None:
                continue
            for write in what.writes:
                run = self._write(number, run, instruction, write)
            if what.calls:
                self._close(number, run)
                run = []
        self._close(number, run)

    def _write(
        self, number: int, run: list[Group], instruction: Instruction, write: Write
    ) -> list[Group]:
        if write.lanes:
            self._close(number, run)
            self._planned.insert(instruction.line, self._emitter.scatter(write))
            self._planned.marks += write.lanes
            return []
        address = self._addresses.of(write.address)
        if self._addresses.on_stack(address.base):
            return run
        for group in run:
            if group.address.key == address.key and group.take(write, address.offset):
                return run
        if 2 * len(run) + 2 > RUN_SLOTS:
            self._close(number, run)
            run = []
        low = address.offset
        align = min(write.align, abi.PAGE_BYTES)
        run.append(
            Group(instruction.line, write.address, address, low, low + write.bytes, align, low)
        )
        return run

    def _close(self, number: int, run: list[Group]) -> None:
        slot = 0
        for group in run:
            if self._in_loop(number, group):
                continue
            lines, pointer = self._emitter.moved(group.pointer, group.low - group.address.offset)
            self._planned.insert(group.line, lines + self._mark(pointer, group, slot))
            slot += 2

    def _mark(self, pointer: str, group: Group, slot: int) -> list[str]:
        self._planned.marks += 1
        if group.one_page:
            return self._emitter.point(pointer, slot)
        return self._emitter.span(pointer, group.span_bytes, slot)

    def _in_loop(self, number: int, group: Group) -> bool:
        """Give a group of a loop a mark that costs less, if it can have one."""
        loop = self._loops.of_block.get(number)
        if loop is None or number not in loop.always:
            return False
        changing = self._loops.changing(group.address, loop)
        instead: dict[str, str] = {}
        step_bytes = 0
        if changing:
            growth = self._growth(group.address, changing, loop)
            if growth is None:
                return False
            step_bytes, instead = growth
        slot = self._loops.slots(loop)
        if slot is None:
            return False
        entering = self._function.blocks[loop.before].terminator.line
        start = Address(group.address.base, group.address.terms, group.low)
        lines, pointer = self._emitter.computed(start, instead)
        self._planned.insert(entering, lines + self._emitter.span(pointer, group.span_bytes, slot))
        self._planned.marks += 1
        if changing:
            lines, pointer = self._emitter.moved(group.pointer, group.low - group.address.offset)
            check = self._emitter.crossing(pointer, group.span_bytes, step_bytes, slot)
            self._planned.insert(group.line, lines + check)
        return True

    def _growth(
        self, address: Address, changing: list[str], loop: Loop
    ) -> tuple[int, dict[str, str]] | None:
        """How far an address moves each time round, and the value that stands for its first."""
        if len(changing) != 1:
            return None
        inside = {self._function.blocks[block].name for block in loop.blocks}
        found = self._addresses.step_of(changing[0], inside)
        if found is None:
            return None
        phi, step, start = found
        header = self._function.blocks[loop.header]
        if not any(one is phi for one in header.instructions):
            return None
        step_bytes = step * dict(address.terms).get(changing[0], 1)
        if not 0 < abs(step_bytes) <= LARGEST_STEP_BYTES:
            return None
        return step_bytes, {changing[0]: start}
