"""What must survive a crash of the daemon: which enclaves are here, and who owns each.

SQLite in WAL mode with synchronous=FULL: a write that has returned is on disk. That is what lets
the daemon say 'journaled' before it sends a release token, and before it confirms that an enclave
has been taken over. SQLite blocks, so every statement runs in a worker thread, one at a time.

A disk may be full. What has not happened yet is refused then: the write fails, and the migration
with it. What has happened cannot be refused any more: `insist` writes it again until it is written,
and whatever must come after it (sending a token, confirming an arrival) waits.
"""

import os
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
import trio

from optmigd.protocol.errors import ConfigError, JournalFailed

T = TypeVar("T")

Statement = tuple[str, tuple[Any, ...]]
Write = Callable[[], Awaitable[None]]

INSIST_FIRST_S = 0.1
INSIST_LAST_S = 2.0

SCHEMA_VERSION = 2

WAL_BYTES = 1000 * (4096 + 24)
"""As large as SQLite lets the log become before it begins at its start again, with its defaults."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    enclave TEXT NOT NULL,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    generation INTEGER NOT NULL,
    exit_status INTEGER,
    came_from BLOB,
    moved_to BLOB,
    since_s REAL NOT NULL,
    migration_id BLOB,
    facts BLOB NOT NULL,
    PRIMARY KEY (enclave, number)
) STRICT;
CREATE TABLE IF NOT EXISTS migrations (
    migration_id BLOB PRIMARY KEY,
    enclave TEXT NOT NULL,
    number INTEGER NOT NULL,
    role TEXT NOT NULL,
    peer_key BLOB NOT NULL,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL,
    started_s REAL NOT NULL,
    token BLOB,
    resumed BLOB,
    released_s REAL NOT NULL,
    result BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS migrations_by_enclave ON migrations (enclave, started_s);
"""


@dataclass
class InstanceRow:
    """One stay of an enclave on this host; `came_from` and `moved_to` are host keys.

    `since_s` is the time of day since which the row's owner is the owner: this host, or the one
    that the enclave was released to; `migration_id` is the migration that made it so.
    """

    enclave: str
    number: int
    state: str
    generation: int
    exit_status: int | None = None
    came_from: bytes | None = None
    moved_to: bytes | None = None
    since_s: float = 0.0
    migration_id: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class MigrationRow:
    """One migration in one role; `token` and `resumed` are sealed for the shims.

    `released_s` is the time of day at which the source let go; 0: it has not.
    """

    migration_id: bytes
    enclave: str
    number: int
    role: str
    peer_key: bytes
    generation: int
    state: str
    started_s: float
    token: bytes | None = None
    resumed: bytes | None = None
    released_s: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The daemon's memory on disk. Every method returns when its write is durable.

    A write raises `JournalFailed` where the disk does not take it; then nothing of it is there.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use `open`."""
        self._connection = connection
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()

    @classmethod
    async def open(cls, path: Path) -> "Journal":
        """Open the journal at `path`, mode 0600, and make it if it is absent.

        Raises:
            ConfigError: the file cannot be opened or was written by another version.
        """
        return cls(await trio.to_thread.run_sync(_connect, path))

    async def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        with trio.CancelScope(shield=True):
            await self._run(self._connection.close)

    async def insist(self, write: Write) -> None:
        """Write what has happened already, again and again until the disk takes it.

        Args:
            write: a write of this journal.

        Cancelled, it was written or not; a write under way is not torn.
        """
        delay_s = INSIST_FIRST_S
        while True:
            try:
                with trio.CancelScope(shield=True):
                    return await write()
            except JournalFailed as error:
                self._log.error("journal_write_failed", error=error.message, retry_in_s=delay_s)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, INSIST_LAST_S)

    async def write_soon(self, nursery: trio.Nursery, write: Write) -> None:
        """Write what nobody waits for: now, or in a task of `nursery` when the disk takes it.

        Left out by a crash meanwhile, it must be what the next daemon finds out by itself.
        """
        try:
            await write()
        except JournalFailed as error:
            self._log.error("journal_write_failed", error=error.message)
            nursery.start_soon(self.insist, write)

    async def save_instance(self, row: InstanceRow) -> None:
        """Insert or replace one stay of an enclave."""
        await self._write(_put_instance(row))

    async def save_handover(self, instance: InstanceRow, migration: MigrationRow) -> None:
        """Write a stay and the migration that brought it or took it away, both or neither."""
        await self._write(_put_instance(instance), _put_migration(migration))

    async def delete_instance(self, enclave: str, number: int) -> None:
        """Forget a stay; its migrations, which have the receipts, are kept."""
        await self._write(
            ("DELETE FROM instances WHERE enclave = ? AND number = ?", (enclave, number))
        )

    async def instances(self) -> list[InstanceRow]:
        """Return every stay, oldest first."""
        rows = await self._read("SELECT * FROM instances ORDER BY enclave, number", ())
        return [InstanceRow(*_with_map(row)) for row in rows]

    async def save_migration(
        self, row: MigrationRow, *, then: Callable[[], None] | None = None
    ) -> None:
        """Insert or replace one migration.

        Args:
            row: all of it.
            then: called by the thread that wrote as soon as the row is on disk, which is earlier
                than this returns; raises nothing.
        """
        await self._write(_put_migration(row), then=then)

    async def migration(self, migration_id: bytes) -> MigrationRow | None:
        """Return one migration, None if this host knows nothing of it."""
        rows = await self._read("SELECT * FROM migrations WHERE migration_id = ?", (migration_id,))
        return _migration(rows[0]) if rows else None

    async def last_migration(self, enclave: str) -> MigrationRow | None:
        """Return the migration of an enclave that began last, however it ended."""
        rows = await self._read(
            "SELECT * FROM migrations WHERE enclave = ? ORDER BY started_s DESC LIMIT 1",
            (enclave,),
        )
        return _migration(rows[0]) if rows else None

    async def completed_migration(self, enclave: str) -> MigrationRow | None:
        """Return the last completed migration of an enclave: the one that has a receipt."""
        rows = await self._read(
            "SELECT * FROM migrations WHERE enclave = ? AND state = 'completed'"
            " ORDER BY started_s DESC LIMIT 1",
            (enclave,),
        )
        return _migration(rows[0]) if rows else None

    async def unfinished_migrations(self) -> list[MigrationRow]:
        """Return the migrations that a crash of the daemon interrupted."""
        rows = await self._read(
            "SELECT * FROM migrations WHERE state NOT IN ('completed', 'failed', 'cancelled')", ()
        )
        return [_migration(row) for row in rows]

    async def _write(self, *statements: Statement, then: Callable[[], None] | None = None) -> None:
        def write() -> None:
            with self._connection:
                for statement, values in statements:
                    self._connection.execute(statement, values)
            if then is not None:
                then()

        try:
            await self._run(write)
        except sqlite3.Error as error:
            raise JournalFailed(f"the journal cannot be written: {error}") from error

    async def _read(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return await self._run(lambda: self._connection.execute(statement, values).fetchall())

    async def _run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._one_at_a_time)


def _put_instance(row: InstanceRow) -> Statement:
    values = (
        row.enclave,
        row.number,
        row.state,
        row.generation,
        row.exit_status,
        row.came_from,
        row.moved_to,
        row.since_s,
        row.migration_id,
        msgspec.msgpack.encode(row.facts),
    )
    return "INSERT OR REPLACE INTO instances VALUES (?,?,?,?,?,?,?,?,?,?)", values


def _put_migration(row: MigrationRow) -> Statement:
    values = (
        row.migration_id,
        row.enclave,
        row.number,
        row.role,
        row.peer_key,
        row.generation,
        row.state,
        row.started_s,
        row.token,
        row.resumed,
        row.released_s,
        msgspec.msgpack.encode(row.result),
    )
    return "INSERT OR REPLACE INTO migrations VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", values


def _migration(row: tuple[Any, ...]) -> MigrationRow:
    return MigrationRow(*_with_map(row))


def _with_map(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row whose last column, a map in msgpack, is read.

    Raises:
        ConfigError: that column is damaged.
    """
    try:
        return (*row[:-1], msgspec.msgpack.decode(row[-1], type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the journal's row of {row[0]!r} is damaged: {error}; the disk fails, or something "
            "other than optmigd wrote journal.db in the state directory"
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.touch(mode=0o600)
        for suffix in ("", "-wal", "-shm"):
            existing = path.with_name(path.name + suffix)
            if existing.exists():
                existing.chmod(0o600)  # restored from a backup, say: SQLite makes its own alike
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            connection.close()
            raise ConfigError(
                f"expected a journal of version {SCHEMA_VERSION} at {path}, found {version}: "
                "start the optmigd that wrote it, or choose another state directory",
                path=str(path),
            )
        if version == 0:  # not otherwise: a daemon must be able to start on a full disk
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.commit()
        _lengthen_log(connection, path)
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(
            f"the journal {path} cannot be opened: {error}; it must be a file that this user "
            "can write, on a local disk",
            path=str(path),
        ) from error
    return connection


def _lengthen_log(connection: sqlite3.Connection, path: Path) -> None:
    """Give SQLite's log its full length now, so that writes overwrite it in place.

    A program stands still while its token is journaled. A write that lengthens a file has the file
    system commit its own journal, and with it what others have written; one in place has not. What
    a transaction spills into the log and then takes back lengthens the log and nothing else.
    """
    (pages,) = connection.execute("PRAGMA cache_size").fetchone()
    connection.execute("PRAGMA cache_size = 10")  # more than that is spilled
    connection.execute("BEGIN")
    try:
        connection.execute("CREATE TABLE filler (content BLOB)")
        connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (WAL_BYTES,))
    except sqlite3.OperationalError as error:
        # On a full disk, or beyond a quota, writes lengthen the log as they can.
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise
    finally:
        connection.rollback()
        connection.execute(f"PRAGMA cache_size = {pages}")
    log = path.with_name(path.name + "-wal")
    if log.exists():
        with log.open("rb") as file:
            os.fsync(file.fileno())
