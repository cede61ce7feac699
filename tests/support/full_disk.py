"""A journal whose disk is full, without a disk that is: the error is SQLite's own.

Every write transaction begins with a row that does not fit into the pages that SQLite may use, so
SQLite itself refuses and rolls back.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from optmigd.daemon import journal
from optmigd.daemon.journal import Journal, MigrationRow, Statement

_BALLAST = MigrationRow(b"ballast", "", 0, "", b"", 0, "failed", 0.0, bytes(1 << 20))
_MOST_PAGES = 4294967294

Write = Callable[..., Awaitable[None]]


def fills_up(is_full: Callable[[Path], bool]) -> Write:
    """Return a replacement of `Journal._write`.

    Args:
        is_full: asked before each write, with the journal's path.
    """
    write = Journal._write

    async def write_if_room(
        self: Journal, *statements: Statement, then: Callable[[], None] | None = None
    ) -> None:
        path = Path(await self._run(lambda: _path(self)))
        if not is_full(path):
            await write(self, *statements, then=then)
            return
        await self._run(lambda: _limit_to_present_size(self))
        try:
            await write(self, journal._put_migration(_BALLAST), *statements, then=then)
        finally:
            await self._run(lambda: _limit(self, _MOST_PAGES))

    return write_if_room


def _path(self: Journal) -> str:
    ((_, _, path),) = self._connection.execute("PRAGMA database_list").fetchall()
    return str(path)


def _limit_to_present_size(self: Journal) -> None:
    (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
    _limit(self, pages)


def _limit(self: Journal, pages: int) -> None:
    self._connection.execute(f"PRAGMA max_page_count = {pages}")
