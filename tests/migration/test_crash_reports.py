"""A crash report shows where it happened, and no secret that a variable held."""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
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


def start(what: str, folder: Path, secret: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.crashing", what, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    assert process.stdin is not None
    process.stdin.write(secret.encode() + b"\n")
    process.stdin.flush()
    return process


def everything_said(process: subprocess.Popen[bytes], folder: Path) -> str:
    """What the process has written, wherever, until it ended."""
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return "\n".join([said.decode(), *(path.read_text(errors="replace") for path in files)])


def refusal(client: BlockingClient) -> OptmigError | None:
    """What `ping` is answered with instead of an answer."""
    try:
        client.ping()
    except OptmigError as error:
        return error
    return None


def test_an_agents_crash_shows_no_secret(folder: Path) -> None:
    secret = secrets.token_hex(16)
    said = everything_said(start("agent", folder, secret), folder)
    assert "migration_failed_unexpectedly" in said
    assert said.count("ZeroDivisionError: 2 / 0") == 2
    assert "make_mistake" in said
    assert secret not in said


def test_a_daemons_crash_shows_no_secret(folder: Path) -> None:
    secret = secrets.token_hex(16)
    process = start("daemon", folder, secret)
    try:
        client = BlockingClient(folder / "s")
        while isinstance(error := refusal(client), DaemonUnreachable):
            assert process.poll() is None, "the daemon did not start"
            time.sleep(0.05)  # a poll: there is nothing to wait on before the socket exists
        assert error is not None
        assert error.code == "internal"
        assert secret not in f"{error.message} {error.fields}"
        with suppress(OptmigError):  # the daemon may end before it answers
            client.stop("any")
        said = everything_said(process, folder)
    finally:
        process.kill()
        process.wait()
    assert "request_crashed" in said
    assert said.count("2 / 0") >= 2
    assert "make_mistake" in said
    assert secret not in said
