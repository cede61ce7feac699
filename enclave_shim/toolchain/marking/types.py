"""Sizes and layout of LLVM types on x86-64.

Source: the data layout of clang's x86-64 target,
`e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from optmigd.enclave_shim.toolchain.marking.ir import NAME, closing, split_operands

_SCALARS = {
    "half": (2, 2),
    "bfloat": (2, 2),
    "float": (4, 4),
    "double": (8, 8),
    "x86_fp80": (16, 16),
    "fp128": (16, 16),
    "ppc_fp128": (16, 16),
    "x86_amx": (1024, 64),
    "ptr": (8, 8),
}
_WORD = re.compile(rf"i\d+|[a-z_]\w*|%{NAME}")
_ADDRESS_SPACE = re.compile(r" addrspace\(\d+\)")
_COUNT = re.compile(r"\s*(?:vscale x )?(\d+) x ")


@dataclass(frozen=True)
class Type:
    """A sized type: bytes that it takes, its alignment, and what indices into it mean.

    Attributes:
        bytes: with padding, as in an array.
        fields: of a structure.
        element: of an array or vector.
    """

    bytes: int
    align: int
    fields: tuple[Type, ...] = ()
    packed: bool = False
    element: Type | None = None

    def offset(self, index: int) -> int:
        """Byte offset of a structure's field."""
        at = 0
        for number, one in enumerate(self.fields):
            at = at if self.packed else -(-at // one.align) * one.align
            if number == index:
                return at
            at += one.bytes
        raise ValueError(f"no field {index} in a structure of {len(self.fields)}")


def _struct(fields: tuple[Type, ...], packed: bool) -> Type:
    align = 1 if packed else max((one.align for one in fields), default=1)
    at = 0
    for one in fields:
        at = (at if packed else -(-at // one.align) * one.align) + one.bytes
    return Type(-(-at // align) * align, align, fields, packed)


class Types:
    """Reads types, with the module's named ones."""

    def __init__(self, named: dict[str, str]) -> None:
        self._named = named
        self._known: dict[str, Type] = {}

    def read(self, text: str) -> tuple[Type, str]:
        """Read the type that a text begins with; return it and what follows.

        Raises:
            ValueError: it begins with no sized type.
        """
        text = text.lstrip()
        if text[:1] in "[<{":
            end = closing(text, 0) + 1
            return self._bracketed(text[:end]), text[end:]
        match = _WORD.match(text)
        if match is None:
            raise ValueError(f"no type: {text}")
        rest = text[match.end() :]
        if match[0] == "ptr" and (space := _ADDRESS_SPACE.match(rest)):
            rest = rest[space.end() :]
        return self._word(match[0]), rest

    def _word(self, word: str) -> Type:
        known = self._known.get(word)
        if known is None:
            if word in _SCALARS:
                known = Type(*_SCALARS[word])
            elif word[0] == "i" and word[1:].isdigit():
                stored = -(-int(word[1:]) // 8)
                align = min(1 << (stored - 1).bit_length(), 16)
                known = Type(-(-stored // align) * align, align)
            elif word in self._named:
                known = self.read(self._named[word])[0]
            else:
                raise ValueError(f"no sized type: {word}")
            self._known[word] = known
        return known

    def _bracketed(self, text: str) -> Type:
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = self._read_bracketed(text)
        return known

    def _read_bracketed(self, text: str) -> Type:
        if text.startswith("<{"):
            return self._fields(text[2:-2], packed=True)
        if text.startswith("{"):
            return self._fields(text[1:-1], packed=False)
        match = _COUNT.match(text, 1)
        if match is None:
            raise ValueError(f"no type: {text}")
        element = self.read(text[match.end() : -1])[0]
        count = int(match[1])
        if text[0] == "[":
            return Type(element.bytes * count, element.align, element=element)
        total = max(1, element.bytes * count)
        return Type(total, 1 << (total - 1).bit_length(), element=element)

    def _fields(self, text: str, *, packed: bool) -> Type:
        if not text.strip():
            return Type(0, 1)
        return _struct(tuple(self.read(part)[0] for part in split_operands(text)), packed)
