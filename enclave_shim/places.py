"""Where in the program a call was made, by the names in the image's symbol table.

The runtime notes the call's instruction and a few words of the stack that look like return
addresses (`struct rt_place`). An image that was stripped has no names: then addresses are shown,
which `addr2line` understands. Nothing here trusts the table: it is part of an image, and bounded.
"""

import struct
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.syscall_names import name_of

MAX_SYMBOLS = 1 << 20
SHOWN_CALLERS = 2
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMTAB, _FUNCTION = 2, 2
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)


@dataclass(frozen=True)
class Symbols:
    """The functions of an image, sorted by address."""

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def function_of(self, address: int) -> str:
        """The function that an address lies in, or an empty text."""
        at = bisect_right(self.starts, address) - 1
        return self.names[at] if at >= 0 and address < self.ends[at] else ""

    def name(self, address: int) -> str:
        """`function+0x12`, or the address where no function is known."""
        function = self.function_of(address)
        if not function:
            return f"{address:#x}"
        return f"{function}+{address - self.starts[bisect_right(self.starts, address) - 1]:#x}"


def read_symbols(content: bytes) -> Symbols:
    """The functions in an ELF file's symbol table; none if it has none or it is damaged."""
    try:
        offset, count = (
            struct.unpack_from("<Q", content, 40)[0],
            struct.unpack_from("<HH", content, 58)[1],
        )
        sections = [_SECTION_HEADER.unpack_from(content, offset + 64 * i) for i in range(count)]
        table = next(section for section in sections if section[1] == _SYMTAB)
        texts = sections[table[6]]
        rows = np.frombuffer(
            content[table[4] : table[4] + min(table[5], MAX_SYMBOLS * 24) // 24 * 24], _SYMBOL
        )
    except (struct.error, StopIteration, IndexError):
        return Symbols()
    strings = content[texts[4] : texts[4] + texts[5]]
    functions = np.sort(rows[(rows["info"] & 15 == _FUNCTION) & (rows["size"] > 0)], order="value")
    names = tuple(_text_at(strings, int(row["name"])) for row in functions)
    starts = functions["value"].tolist()
    ends = (functions["value"] + functions["size"]).tolist()
    return Symbols(tuple(starts), tuple(ends), names)


def _text_at(strings: bytes, at: int) -> str:
    return strings[at : strings.find(b"\0", at)].decode(errors="replace")


@dataclass(frozen=True)
class CallPlace:
    """A call, and where it was made: `place` is for people, innermost function first."""

    call: str
    place: str


def call_place(record: np.void, symbols: Symbols) -> CallPlace:
    """Read a `struct rt_place`.

    libc's own plumbing of system calls, which says nothing, is left out where names are known.
    """
    addresses = [int(record["ip"]), *(int(word) for word in record["callers"] if word)]
    shown: list[str] = []
    functions: list[str] = []
    for address in addresses:
        function = symbols.function_of(address)
        if function.startswith("__syscall") or (function and function in functions):
            continue
        if not function and (shown or symbols.names):
            continue  # a stale word: every caller would have a name
        functions.append(function)
        shown.append(symbols.name(address))
        if len(shown) > SHOWN_CALLERS:
            break
    return CallPlace(name_of(int(record["nr"])), " < ".join(shown) or symbols.name(addresses[0]))


def refused_calls(ctl: np.void, symbols: Symbols) -> list[CallPlace]:
    """The calls that were answered with ENOSYS on this host, each place once."""
    count = min(int(ctl["refused_count"]), abi.CTL_MAX_REFUSED)
    return [call_place(record, symbols) for record in ctl["refused"][:count]]
