"""The generated parts of docs/protocol.md.

`python -m tests.protocol.document` brings them up to date; a test says when that is due. A part
stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from optmigd.protocol.blockers import BLOCKER_CODES
from optmigd.protocol.link import LinkMessage, WireBlocker
from optmigd.protocol.record_format import EndOfRound, FileMeta
from optmigd.protocol.session_messages import (
    FileNeed,
    FromDestination,
    FromSource,
    Manifest,
    Ready,
    ReleaseToken,
    ResumedReport,
)
from optmigd.protocol.states import Role, render_diagram, render_table, render_words

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/protocol.md"
_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _bounds(info: Any) -> str:
    low, high = getattr(info, "min_length", None), getattr(info, "max_length", None)
    if low is None and high is None:
        return ""
    return f" {low}" if low == high else f" {low or 0}…{high}"


def _type(info: inspect.Type) -> str:
    """Return a msgpack type with its bounds, for people."""
    match info:
        case inspect.BytesType():
            return f"bin{_bounds(info)}"
        case inspect.StrType(pattern=pattern) if pattern:
            return "str " + pattern.strip("^$()").replace("|", " or ")
        case inspect.StrType():
            return f"str{_bounds(info)}"
        case inspect.BoolType():
            return "bool"
        case inspect.FloatType():
            return "float"
        case inspect.IntType(ge=low, le=high):
            return f"int {_power(low)}…{_power(high)}"
        case inspect.LiteralType(values=values):
            return "str " + " or ".join(str(value) for value in values)
        case inspect.ListType(item_type=item):
            return f"array{_bounds(info)} of {_type(item)}"
        case inspect.TupleType(item_types=items):
            return "[" + ", ".join(_type(item) for item in items) + "]"
        case inspect.DictType(value_type=value):
            return f"map of {_type(value)}"
        case inspect.StructType(cls=cls):
            return f"`{cls.__name__}`"
        case inspect.AnyType():
            return "anything"
        case _:
            raise TypeError(f"no words for {info}")


def _power(value: int | None) -> str:
    for exponent in (16, 31, 32, 63):
        if value == 2**exponent - 1:
            return f"2^{exponent}−1"
        if value == -(2**exponent):
            return f"−2^{exponent}"
    return str(value)


def _rows(structs: list[type[msgspec.Struct]], sender: str = "") -> str:
    """Return one row for each struct: its tag, its fields, and its first sentence."""
    lines = []
    for cls in structs:
        info = inspect.type_info(cls)
        if not isinstance(info, inspect.StructType):
            raise TypeError(f"{cls} is no struct")
        fields = "<br>".join(
            f"`{field.name}` {_type(field.type)}" + ("" if field.required else ", may be absent")
            for field in info.fields
        )
        meaning = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        tag = f"`{info.tag}`" if info.tag else "(no tag)"
        cells = [f"`{cls.__name__}`", tag, *([sender] if sender else []), fields or "none", meaning]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table(*groups: str, sender: bool = False) -> str:
    heads = ["message", "`t`", *(["from"] if sender else []), "fields", "meaning"]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *groups]) + "\n"


def _mermaid(text: str) -> str:
    return f"```mermaid\n{text}```\n"


def _session() -> str:
    return _table(_rows([*FromSource.__args__, *FromDestination.__args__][:-1]))


def _blockers() -> str:
    rows = [f"| `{code}` | {text} |" for code, text in BLOCKER_CODES.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows]) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "source-diagram": lambda: _mermaid(render_diagram(Role.SOURCE)),
    "destination-diagram": lambda: _mermaid(render_diagram(Role.DESTINATION)),
    "source-table": lambda: render_table(Role.SOURCE),
    "destination-table": lambda: render_table(Role.DESTINATION),
    "words": render_words,
    "link-messages": lambda: _table(_rows([*LinkMessage.__args__, WireBlocker])),
    "session-messages": _session,
    "sealed-once": lambda: _table(_rows([Manifest, Ready, ReleaseToken, ResumedReport])),
    "file-need": lambda: _table(_rows([FileNeed])),
    "record-metas": lambda: _table(_rows([EndOfRound, FileMeta])),
    "blockers": _blockers,
}


def refreshed(text: str) -> str:
    """Return the document with every generated part as it should be."""
    return _PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


def parts_of(text: str) -> list[str]:
    """Return the names of the generated parts that the document has."""
    return [match[2] for match in _PART.finditer(text)]


if __name__ == "__main__":
    DOCUMENT.write_text(refreshed(DOCUMENT.read_text("utf-8")), "utf-8")
