"""`optmigctl migrate`: options, displays, outcomes and Ctrl-C."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest

from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import AlreadyReleased, MigrationBlocked, UnknownHost
from tests.cli.conftest import Ctl
from tests.support.control_server import MIGRATION, PROGRESS, ROUND, ControlServer, Params

OPTMIGCTL = [sys.executable, "-m", "optmigd.cli.ctl"]


def completes(params: Params) -> Generator[Params, None, Params]:
    """A short migration."""
    yield {"state": "active"}
    yield {"progress": PROGRESS}
    yield {"round": ROUND}
    yield {"state": "switchover"}
    return MIGRATION


def ends(code: str, state: str) -> Params:
    """The answer of a migration that came to nothing."""
    error = {"code": code, "message": f"it was {code}", "fields": {"round_no": 3}}
    return MIGRATION | {"state": state, "error": error}


def test_all_options_reach_the_daemon(optmigctl: Ctl) -> None:
    with ControlServer(migrate=completes) as server:
        done = optmigctl(
            server,
            *("migrate", "join", "b", "--mode", "stop-and-copy", "--downtime-limit", "12.5"),
            *("--max-bandwidth", "200MB/s", "--streams", "4", "--timeout", "60"),
            *("--on-stall", "abort", "--verify"),
        )
        assert done.code == 0
        assert server.params_of("migrate") == {
            "enclave": "join",
            "host": "b",
            "mode": "stop-and-copy",
            "downtime_limit_ms": 12.5,
            "max_bandwidth": 200_000_000,
            "streams": 4,
            "timeout_s": 60.0,
            "on_stall": "abort",
            "verify": True,
            "detach": False,
        }


def test_what_is_not_said_is_left_to_the_settings(optmigctl: Ctl) -> None:
    with ControlServer(migrate=completes) as server:
        optmigctl(server, "migrate", "join", "b")
        assert server.params_of("migrate") == {
            "enclave": "join",
            "host": "b",
            "mode": "precopy",
            "max_bandwidth": 0,
            "verify": False,
            "detach": False,
        }


def test_without_a_terminal_it_prints_plain_lines_and_a_summary(optmigctl: Ctl) -> None:
    with ControlServer(migrate=completes) as server:
        done = optmigctl(server, "migrate", "join", "b")
    lines = done.out.splitlines()
    assert lines[0] == "state active"
    assert lines[1].startswith("round 0 done: 262144 pages")
    assert lines[2] == "state switchover"
    assert lines[3] == "join runs on b"
    pairs = [line.split(maxsplit=1) for line in lines]
    assert ["downtime", "21.5 ms"] in pairs
    assert any(line.split("  ")[-1] == "12 ms" and "last pages" in line for line in lines)
    assert "verified" not in done.out
    assert "\x1b" not in done.out


def test_with_json_it_prints_one_object(optmigctl: Ctl) -> None:
    with ControlServer(migrate=completes) as server:
        done = optmigctl(server, "migrate", "join", "b", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json == MIGRATION


@pytest.mark.parametrize(
    ("code", "state", "exit_code"),
    [
        ("failed", "failed", 4),
        ("channel-closed", "failed", 4),
        ("timeout", "failed", 4),
        ("not-converging", "failed", 4),
        ("cancelled", "cancelled", 5),
        ("uncertain", "switchover", 6),
        ("attestation-failed", "failed", 3),
    ],
)
def test_a_migration_that_comes_to_nothing_says_so(
    optmigctl: Ctl, code: str, state: str, exit_code: int
) -> None:
    with ControlServer(migrate=lambda params: ends(code, state)) as server:
        plain = optmigctl(server, "migrate", "join", "b")
        as_json = optmigctl(server, "migrate", "join", "b", "--json")
    assert plain.code == as_json.code == exit_code
    assert f"it was {code}" in plain.err
    assert "runs on b" not in plain.out
    assert as_json.json == MIGRATION | {
        "state": state,
        "error": {"code": code, "message": f"it was {code}", "fields": {"round_no": 3}},
    }


def test_blockers_are_printed_one_a_line_with_what_to_do(optmigctl: Ctl) -> None:
    def blocked(params: Params) -> Params:
        raise MigrationBlocked(
            "join cannot move to b: 2 blockers",
            blockers=[
                Blocker("socket", "fd 3", "a TCP socket is open"),
                Blocker("memory", "b", "4 GiB needed, 1 GiB free"),
            ],
        )

    with ControlServer(migrate=blocked) as server:
        plain = optmigctl(server, "migrate", "join", "b")
        as_json = optmigctl(server, "migrate", "join", "b", "--json")
    assert plain.code == as_json.code == 3
    lines = plain.err.splitlines()
    assert lines[0] == "optmigctl: join cannot move to b: 2 blockers"
    assert lines[1].startswith("  socket: fd 3: a TCP socket is open (what to do: ")
    assert lines[2].startswith("  memory: b: 4 GiB needed, 1 GiB free (what to do: ")
    assert as_json.json["error"]["fields"]["blockers"] == [
        {"code": "socket", "subject": "fd 3", "message": "a TCP socket is open"},
        {"code": "memory", "subject": "b", "message": "4 GiB needed, 1 GiB free"},
    ]


def test_an_unknown_host_is_refused(optmigctl: Ctl) -> None:
    def refuse(params: Params) -> Params:
        raise UnknownHost("no peer is called 'b'", host="b")

    with ControlServer(migrate=refuse) as server:
        done = optmigctl(server, "migrate", "join", "b", "--json")
    assert done.code == 3
    assert done.json == {
        "error": {
            "code": "unknown-host",
            "message": "no peer is called 'b'",
            "fields": {"host": "b"},
        }
    }


def test_detached_it_returns_when_the_migration_has_started(optmigctl: Ctl) -> None:
    started = {"migration_id": "0f", "enclave": "join", "state": "setup"}
    with ControlServer(migrate=lambda params: started) as server:
        plain = optmigctl(server, "migrate", "join", "b", "--detach")
        as_json = optmigctl(server, "migrate", "join", "b", "--detach", "--json")
        assert all(params["detach"] for _, params in server.requests)
    assert (plain.code, plain.out) == (0, "migration 0f of join to b has started\n")
    assert as_json.json == started


class Cancellable:
    """A daemon whose migration goes on until it is cancelled, or for good."""

    def __init__(self, *, released: bool = False) -> None:
        self.server = ControlServer(migrate=self.migrate, cancel=self.cancel)
        self.released = released
        self.running = threading.Event()
        self.cancelled = threading.Event()
        self.complete = threading.Event()

    def migrate(self, params: Params) -> Generator[Params, None, Params]:
        yield {"state": "active"}
        self.running.set()
        while not self.server.stopping.wait(0.01):
            if self.cancelled.is_set() and not self.released:
                yield {"state": "cancelled"}
                return ends("cancelled", "cancelled")
            if self.complete.is_set():
                return MIGRATION
        return {}

    def cancel(self, params: Params) -> Params:
        self.cancelled.set()
        if self.released:
            raise AlreadyReleased("it has been handed over")
        return {"migration_id": MIGRATION["migration_id"], "state": "cancelling"}


def start(server: ControlServer, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*OPTMIGCTL, "--socket", str(server.path), *arguments], text=True, **options
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_ctrl_c_cancels_and_waits_for_the_outcome() -> None:
    daemon = Cancellable()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with daemon.server:
        with start(daemon.server, "migrate", "join", "b", "--json", **pipes) as process:
            assert daemon.running.wait(20)
            process.send_signal(signal.SIGINT)
            code, out, err = finish(process)
        assert daemon.server.params_of("cancel") == {"enclave": "join"}
    assert code == 5
    assert '"code": "cancelled"' in out
    assert err.startswith("cancelling")


def test_ctrl_c_too_late_lets_it_complete() -> None:
    daemon = Cancellable(released=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with daemon.server, start(daemon.server, "migrate", "join", "b", **pipes) as process:
        assert daemon.running.wait(20)
        process.send_signal(signal.SIGINT)
        assert daemon.cancelled.wait(20)
        daemon.complete.set()
        code, out, err = finish(process)
    assert code == 0
    assert "join runs on b" in out
    assert "it cannot be cancelled: it has been handed over" in err


def test_a_second_ctrl_c_leaves_the_migration_to_itself() -> None:
    daemon = Cancellable(released=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with daemon.server, start(daemon.server, "migrate", "join", "b", **pipes) as process:
        assert daemon.running.wait(20)
        process.send_signal(signal.SIGINT)
        assert daemon.cancelled.wait(20)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == 130
    assert "which goes on; see `optmigctl status join`" in err


def test_on_a_terminal_progress_is_drawn_and_taken_away_again() -> None:
    daemon = Cancellable()
    terminal, theirs = pty.openpty()
    drawn = b""

    def migrate(params: Params) -> Generator[Params, None, Params]:
        yield from completes(params)
        daemon.complete.wait(20)
        return MIGRATION

    daemon.server.handlers["migrate"] = migrate
    try:
        with daemon.server:
            environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
            streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": environment}
            with start(daemon.server, "migrate", "join", "b", **streams) as process:
                os.close(theirs)
                while b"switchover" not in drawn:
                    drawn += read(terminal)
                live = drawn.decode()
                daemon.complete.set()
                assert process.wait(20) == 0
            while piece := read(terminal):
                drawn += piece
    finally:
        os.close(terminal)
    for text in ("join → b", "round 1", "262144 pages", "256 MiB remaining", "1 GB/s"):
        assert text in live
    assert "expected downtime 12.5 ms" in live
    assert "8.19 MB/s dirtied" in live
    assert "join runs on b" in drawn.decode()


def read(terminal: int) -> bytes:
    """Read what there is; nothing once the other side has closed."""
    if not select.select([terminal], [], [], 20)[0]:
        raise TimeoutError("nothing was drawn")
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
