"""Writes the table of docs/defences.md: `python -m tests.mutation.document` refreshes it."""

import re
from pathlib import Path

from tests.mutation.defences import DEFENCES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/defences.md"
_PART = re.compile(r"(<!-- generated: defences -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """Return every defence with its place and its test, as Markdown."""
    rows = [f"| {one.name} | `{one.file}` | `{one.test}` |" for one in DEFENCES]
    return "\n".join(["| defence | where | test |", "|---|---|---|", *rows]) + "\n"


def refreshed(text: str) -> str:
    """Return the document with the table as it should be."""
    return _PART.sub(lambda match: match[1] + table() + match[2], text)


if __name__ == "__main__":
    DOCUMENT.write_text(refreshed(DOCUMENT.read_text("utf-8")), "utf-8")
