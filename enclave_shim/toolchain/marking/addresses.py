"""Where an address points: a base, plus constants, plus values times scales.

Address arithmetic is modulo 2**64, so the forms are exact whatever the indices are; no promise of
the program (`inbounds`, `nsw`) is relied upon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from optmigd.enclave_shim.toolchain.marking.ir import (
    NAME,
    Function,
    Instruction,
    closing,
    split_operands,
)
from optmigd.enclave_shim.toolchain.marking.types import Types

_FLAGS = re.compile(r"^(?:(?:inbounds|nuw|nusw|nsw|disjoint|inrange\([^)]*\)) )*")
_FUNCTION = re.compile(rf"@{NAME}\(")
_PLAIN = re.compile(rf"[%@]{NAME}|-?\d+|null")
_MASK = (1 << 64) - 1
_DEEPEST = 64


def signed(value: int) -> int:
    """A 64-bit pattern as a signed number."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True)
class Address:
    """base + sum(scale * value) + offset, modulo 2**64.

    Attributes:
        base: a value or a global whose own address is not taken apart further.
        terms: values of type i64 and their scales in bytes, sorted.
    """

    base: str
    terms: tuple[tuple[str, int], ...]
    offset: int

    @property
    def key(self) -> tuple[str, tuple[tuple[str, int], ...]]:
        """Equal for addresses that differ by a constant."""
        return self.base, self.terms

    @property
    def values(self) -> list[str]:
        """The values it is computed from."""
        return [self.base, *(value for value, _ in self.terms)]


class Addresses:
    """Takes the addresses of one function apart."""

    def __init__(self, function: Function, types: Types) -> None:
        self._definitions = function.definitions()
        self._types = types
        self._known: dict[str, Address] = {}
        self._stack_parameters = _stack_parameters(function.header)

    def of(self, pointer: str) -> Address:
        """The form of a pointer operand."""
        known = self._known.get(pointer)
        if known is None:
            known = self._known[pointer] = self._take_apart(pointer, 0)
        return known

    def on_stack(self, base: str) -> bool:
        """Whether a base is a variable of this function's own frame."""
        if base in self._stack_parameters:
            return True
        definition = self._definitions.get(base)
        return definition is not None and definition.opcode == "alloca"

    def step_of(self, phi: str, inside: set[str]) -> tuple[Instruction, int, str] | None:
        """By what constant an i64 or pointer phi grows each time round a loop.

        Args:
            phi: the value.
            inside: the names of the loop's blocks.

        Returns:
            Its instruction, the constant, and the value it starts with; None if it is no such phi.
        """
        definition = self._definitions.get(phi)
        if definition is None or definition.opcode != "phi":
            return None
        is_pointer = definition.rest.startswith("ptr ")
        if not is_pointer and not definition.rest.startswith("i64 "):
            return None
        steps: set[int | None] = set()
        starts: list[str] = []
        for value, block in incoming(definition):
            if block not in inside:
                starts.append(value)
            elif is_pointer:
                form = self.of(value)
                grows = form.base == phi and not form.terms
                steps.add(signed(form.offset) if grows else None)
            else:
                terms, offset = self._value(value, 0)
                steps.add(signed(offset) if terms == {phi: 1} else None)
        step = steps.pop() if len(steps) == 1 else None
        if step is None or len(starts) != 1 or not _PLAIN.fullmatch(starts[0]):
            return None
        return definition, step, starts[0]

    def _take_apart(self, pointer: str, depth: int) -> Address:
        if pointer.startswith("getelementptr"):
            found = re.search(r"\((.*)\)$", pointer)
            if found is not None:
                return self._element(found[1], pointer, depth)
        definition = self._definitions.get(pointer)
        if definition is not None and definition.opcode == "getelementptr" and depth < _DEEPEST:
            return self._element(definition.rest, pointer, depth)
        return Address(pointer, (), 0)

    def _element(self, text: str, whole: str, depth: int) -> Address:
        text = _FLAGS.sub("", text)
        parts = split_operands(text)
        if not parts[1].startswith("ptr"):
            return Address(whole, (), 0)  # a vector of pointers
        try:
            kind = self._types.read(parts[0])[0]
        except ValueError:
            return Address(whole, (), 0)
        pointer = parts[1].split(" ", 1)[1]
        inner = self._known.get(pointer) or self._take_apart(pointer, depth + 1)
        terms = dict(inner.terms)
        offset = inner.offset
        for number, part in enumerate(parts[2:]):
            width, _, index = part.partition(" ")
            constant = _integer(index)
            if number and kind.fields:
                if constant is None:
                    return Address(whole, (), 0)
                offset += kind.offset(constant)
                kind = kind.fields[constant]
                continue
            if number:
                if kind.element is None:
                    return Address(whole, (), 0)
                kind = kind.element
            if constant is not None:
                offset += constant * kind.bytes
            elif width == "i64":
                more, plus = self._value(index, depth)
                offset += plus * kind.bytes
                for value, times in more.items():
                    terms[value] = terms.get(value, 0) + times * kind.bytes
            else:
                return Address(whole, (), 0)
        wrapped = {value: signed(scale) for value, scale in terms.items()}
        return Address(
            inner.base,
            tuple(sorted((value, scale) for value, scale in wrapped.items() if scale)),
            signed(offset),
        )

    def _value(self, value: str, depth: int) -> tuple[dict[str, int], int]:
        """An i64 as a sum of others."""
        constant = _integer(value)
        if constant is not None:
            return {}, constant
        definition = self._definitions.get(value)
        if definition is None or depth >= _DEEPEST:
            return {value: 1}, 0
        if definition.opcode in ("add", "sub") or (
            definition.opcode == "or" and definition.rest.startswith("disjoint ")
        ):
            text = _FLAGS.sub("", definition.rest)
            if text.startswith("i64 "):
                left, right = split_operands(text[4:])
                constant = _integer(right)
                if constant is not None:
                    terms, offset = self._value(left, depth + 1)
                    return terms, offset + (-constant if definition.opcode == "sub" else constant)
        return {value: 1}, 0


def _stack_parameters(header: str) -> set[str]:
    """The parameters that the caller passes on the stack."""
    name = _FUNCTION.search(header)
    if name is None or "byval(" not in header:
        return set()
    at = name.end() - 1
    parameters = split_operands(header[at + 1 : closing(header, at)])
    return {one.rsplit(" ", 1)[-1] for one in parameters if "byval(" in one}


def incoming(phi: Instruction) -> list[tuple[str, str]]:
    """A phi's values and the blocks they come from."""
    found = re.findall(r"\[ (.*?), (%[^\s\]]+) \]", phi.rest)
    return [(value, block) for value, block in found]


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
