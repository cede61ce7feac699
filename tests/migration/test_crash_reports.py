"""A crash report shows where it happened, and no secret that a variable held."""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from optmigd.blocking import BlockingClient
from optmigd.conversation import DaemonUnreachable
from optmigd.protocol.errors import OptmigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: a UNIX socket is in it."""
    with tempfile.TemporaryDirectory(prefix="optmigd-") as name:
        yield Path(name)


@contextmanager
def crashing(what: str, folder: Path, secret: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent or the daemon that makes mistakes; all that it says goes into the folder."""
    with open(folder / "said", "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crashing", what, str(folder)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            cwd=ROOT,
        )
    try:
        assert process.stdin is not None
        process.stdin.write(secret.encode() + b"\n")
        process.stdin.close()
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_reports(folder: Path, count: int) -> str:
    """Return all that was written, wherever, once it tells of so many mistakes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        said = "\n".join(path.read_text(errors="replace") for path in files)
        if said.count("2 / 0") >= count:
            return said
        time.sleep(0.05)  # a poll: nobody announces a crash
    raise AssertionError(f"expected {count} reports, found {said[-3000:]}")


def refusal(client: BlockingClient) -> OptmigError | None:
    """What `ping` is answered with instead of an answer."""
    try:
        client.ping()
    except OptmigError as error:
        return error
    return None


def test_an_agents_crash_shows_no_secret(folder: Path) -> None:
    secret = secrets.token_hex(16)
    with crashing("agent", folder, secret):
        said = wait_for_reports(folder, 2)
    assert "migration_failed_unexpectedly" in said
    assert "make_mistake" in said
    assert secret not in said


def test_a_daemons_crash_shows_no_secret(folder: Path) -> None:
    secret = secrets.token_hex(16)
    with crashing("daemon", folder, secret) as process:
        client = BlockingClient(folder / "s")
        while isinstance(error := refusal(client), DaemonUnreachable):
            assert process.poll() is None, "the daemon did not start"
            time.sleep(0.05)  # a poll: there is nothing to wait on before the socket exists
        assert error is not None
        assert error.code == "internal"
        assert secret not in f"{error.message} {error.fields}"
        with suppress(OptmigError):  # the daemon may end before it answers
            client.stop("any")
        assert process.wait(timeout=60) != 0
        said = wait_for_reports(folder, 2)
    assert "request_crashed" in said
    assert "make_mistake" in said
    assert secret not in said
