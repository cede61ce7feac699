"""The journal's log: written in place, from the first write on, and never a hindrance."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from optmigd.daemon import journal
from optmigd.daemon.journal import Journal, MigrationRow


def _row(number: int) -> MigrationRow:
    return MigrationRow(
        migration_id=number.to_bytes(16, "big"),
        enclave="demo",
        number=1,
        role="source",
        peer_key=bytes(32),
        generation=number,
        state="released",
        started_s=1.0,
        token=bytes(200),
    )


async def test_no_write_lengthens_the_log(tmp_path: Path) -> None:
    opened = await Journal.open(tmp_path / "journal.db")
    log = tmp_path / "journal.db-wal"
    length = log.stat().st_size
    for number in range(300):  # enough for the log to begin at its start again
        await opened.save_migration(_row(number))
    assert log.stat().st_size == length
    # What was spilled for it is in the log only.
    assert (tmp_path / "journal.db").stat().st_size < 1 << 20
    await opened.close()


async def test_a_crash_leaves_what_was_written_and_nothing_of_the_filler(tmp_path: Path) -> None:
    opened = await Journal.open(tmp_path / "journal.db")
    await opened.save_migration(_row(7))
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(tmp_path / name, crashed / name)
    await opened.close()
    again = await Journal.open(crashed / "journal.db")
    assert await again.migration(_row(7).migration_id) == _row(7)
    await again.close()
    with closing(sqlite3.connect(crashed / "journal.db")) as found:
        names = {name for (name,) in found.execute("SELECT name FROM sqlite_master")}
        assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert "filler" not in names


def test_a_disk_too_full_for_the_log_is_no_reason_not_to_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA max_page_count = 20")  # SQLite says what it says of a full disk
    journal._lengthen_log(connection, path)
    connection.execute("CREATE TABLE small (content BLOB)")
    connection.close()
