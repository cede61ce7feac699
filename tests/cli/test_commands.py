"""Every command of `optmigctl`: what it asks of the daemon, and what it prints."""

import json
from collections.abc import Generator
from pathlib import Path

import pytest

import optmigd
from optmigd.cli.ctl import ctl
from optmigd.cli.invocation import run
from optmigd.config import HostIdentity
from tests.cli.conftest import Ctl
from tests.support.control_server import (
    MIGRATION,
    PROGRESS,
    ROUND,
    STATUS,
    ControlServer,
    Params,
    unknown_enclave,
)

IDENTITY = HostIdentity.from_private(b"\x01" * 32)
PEER = {
    "name": "b",
    "address": "192.0.2.2:7411",
    "key": IDENTITY.key_text,
    "fingerprint": IDENTITY.fingerprint,
}


def test_launch_passes_everything_on(
    optmigctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("image", "policy.toml", "input"):
        (tmp_path / name).write_bytes(name.encode())
    launched = {"enclave": "join", "measurement": "ab", "platform": "sim", "tracker": "kernel"}
    with ControlServer(launch=lambda params: launched) as server:
        done = optmigctl(
            server,
            *("launch", "image", "--id", "join", "--memory", "4GiB", "--dir", "own"),
            *("--shared", "/srv/a", "--shared", "b", "--policy", "policy.toml"),
            *("--env", "A=1", "--env", "B=x=y", "--stdin", "input"),
            *("--json", "--", "--json", "-x", "last one"),
        )
        assert done.code == 0
        assert done.json == launched
        assert server.params_of("launch") == {
            "image": str(tmp_path / "image"),
            "enclave": "join",
            "memory_bytes": 4 << 30,
            "dir": str(tmp_path / "own"),
            "shared": ["/srv/a", str(tmp_path / "b")],
            "policy": b"policy.toml",
            "env": {"A": "1", "B": "x=y"},
            "args": ["--json", "-x", "last one"],
            "stdin": str(tmp_path / "input"),
        }


def test_launch_leaves_open_what_is_not_said(optmigctl: Ctl, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    launched = {"enclave": "e1", "measurement": "ab", "platform": "sim", "tracker": "kernel"}
    with ControlServer(launch=lambda params: launched) as server:
        done = optmigctl(server, "launch", str(image), "one", "two")
        params = server.params_of("launch")
    assert done.code == 0
    assert "e1" in done.out
    assert "protects nothing from the host" in done.out
    assert params["args"] == ["one", "two"]
    assert params["enclave"] == params["dir"] == params["stdin"] == ""
    assert params["memory_bytes"] == 0
    assert params["policy"] == b""


def test_status_prints_the_answer_as_it_came(optmigctl: Ctl) -> None:
    answer = STATUS | {"something_new": [1, None]}
    with ControlServer(status=lambda params: answer) as server:
        before = optmigctl(server, "--json", "status", "join")
        after = optmigctl(server, "status", "join", "--json")
        assert server.requests == [("status", {"enclave": "join"})] * 2
    assert before.json == after.json == answer
    assert before.code == after.code == 0


def test_status_for_people_has_sizes_and_warns_of_a_simulated_platform(optmigctl: Ctl) -> None:
    blocker = {"code": "socket", "subject": "fd 3", "message": "a TCP socket is open"}
    migration = {"migration_id": "0f0f", "state": "active", "role": "source", "peer": "b"}
    answer = STATUS | {"blockers": [blocker], "migration": migration}
    with ControlServer(status=lambda params: answer) as server:
        done = optmigctl(server, "status", "join")
    assert "1.5 GiB used of 4 GiB" in done.out
    assert "protects nothing from the host" in done.out
    assert "0f0f active source b" in done.out
    assert "cannot move now: socket: fd 3: a TCP socket is open (what to do: " in done.out


def test_list_prints_a_row_for_each_enclave_without_cutting(optmigctl: Ctl) -> None:
    long_name = "x" * 90
    ended = STATUS | {"enclave": "[bold]", "state": "exited", "exit_status": 3}
    answer = {"enclaves": [STATUS | {"enclave": long_name}, ended]}
    with ControlServer(list=lambda params: answer) as server:
        as_json = optmigctl(server, "list", "--json")
        done = optmigctl(server, "list")
    assert as_json.json == answer
    heading, first, second = done.out.splitlines()
    assert heading.split() == ["ENCLAVE", "STATE", "HOST", "USED", "MEMORY", "PLATFORM"]
    assert first.startswith(long_name)
    assert second.startswith("[bold]")
    assert "exited (status 3)" in second


def output(params: Params) -> Generator[Params, None, Params]:
    """Program output in pieces, one of which ends inside a character."""
    yield {"content": "caf\u00e9".encode()[:-1]}
    yield {"content": "\u00e9".encode()[1:] + b"\n\xff\x00\n"}
    return {}


def test_logs_are_passed_through_byte_by_byte(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    with ControlServer(logs=output) as server:
        arguments = ["--socket", str(server.path), "logs", "join"]
        assert run(ctl, "optmigctl", arguments) == 0
        assert server.params_of("logs") == {"enclave": "join", "follow": False}
    assert capfdbinary.readouterr().out == "caf\u00e9\n".encode() + b"\xff\x00\n"


def test_logs_as_json_keep_characters_that_lie_across_pieces(optmigctl: Ctl) -> None:
    with ControlServer(logs=output) as server:
        whole = optmigctl(server, "logs", "join", "--json")
        followed = optmigctl(server, "logs", "join", "--json", "--follow")
    assert whole.json == {"enclave": "join", "content": "caf\u00e9\n\\xff\x00\n"}
    pieces = [json.loads(line)["content"] for line in followed.out.splitlines()]
    assert pieces == ["caf", "\u00e9\n\\xff\x00\n"]


@pytest.mark.parametrize(("exit_status", "code"), [(0, 0), (3, 3), (255, 255), (-6, 134)])
def test_wait_exits_as_the_program_did(optmigctl: Ctl, exit_status: int, code: int) -> None:
    answer = {"exit_status": exit_status, "host": "b"}
    with ControlServer(wait=lambda params: answer) as server:
        plain = optmigctl(server, "wait", "join")
        as_json = optmigctl(server, "wait", "join", "--json")
    assert plain.code == as_json.code == code
    assert plain.out == f"join has ended with status {exit_status} on b\n"
    assert as_json.json == answer


def test_stop_succeeds_whatever_the_status(optmigctl: Ctl) -> None:
    with ControlServer(stop=lambda params: {"exit_status": -15}) as server:
        done = optmigctl(server, "stop", "join")
    assert (done.code, done.out) == (0, "join has ended with status -15\n")


def test_check_lists_every_blocker_and_refuses(optmigctl: Ctl) -> None:
    answer = {
        "blockers": [
            {"code": "memory", "subject": "b", "message": "4 GiB needed, 1 GiB free"},
            {"code": "brand-new", "subject": "x", "message": "from a newer daemon"},
        ],
        "forecast": None,
    }
    with ControlServer(check=lambda params: answer) as server:
        plain = optmigctl(server, "check", "join", "b")
        as_json = optmigctl(server, "check", "join", "b", "--json")
        assert server.requests[0] == ("check", {"enclave": "join", "host": "b"})
    assert plain.code == as_json.code == 3
    assert as_json.json == answer
    lines = plain.out.splitlines()
    assert lines[1].startswith("  memory: b: 4 GiB needed, 1 GiB free (what to do: free memory")
    assert lines[2] == "  brand-new: x: from a newer daemon"


def test_check_without_blockers_gives_the_forecast(optmigctl: Ctl) -> None:
    forecast = {
        "rounds": 3,
        "total_time_ms": 4200.0,
        "downtime_ms": 21.5,
        "dirty_pages_rate": 2000.0,
        "something_new": "x",
    }
    with ControlServer(check=lambda params: {"blockers": [], "forecast": forecast}) as server:
        done = optmigctl(server, "check", "join", "b")
    assert done.code == 0
    assert "join can move to b" in done.out
    assert "4.2 s" in done.out
    assert "21.5 ms" in done.out
    assert "2000 pages/s (8.19 MB/s)" in done.out


def test_set_says_how_a_migration_goes_on(optmigctl: Ctl) -> None:
    answer = {
        "migration_id": "0f",
        "downtime_limit_ms": 50.0,
        "max_bandwidth": 100_000_000,
        "on_stall": "switch",
    }
    with ControlServer(set=lambda params: answer) as server:
        changed = optmigctl(server, "set", "join", "--downtime-limit", "50", "--on-stall", "switch")
        assert changed.out == (
            "migration 0f: downtime limit 50 ms, bandwidth at most 100 MB/s, on stall switch\n"
        )
        assert optmigctl(server, "set", "0f" * 16, "--max-bandwidth", "100MB/s", "--json").json == (
            answer
        )
        assert server.requests == [
            ("set", {"enclave": "join", "downtime_limit_ms": 50.0, "on_stall": "switch"}),
            ("set", {"migration_id": "0f" * 16, "max_bandwidth": 100_000_000}),
        ]
        nothing = optmigctl(server, "set", "join")
        assert (nothing.code, len(server.requests)) == (2, 2)


def test_a_queued_migration_is_shown_with_its_place(optmigctl: Ctl) -> None:
    queue = {"position": 2, "waits_for": "b"}
    migration = {"migration_id": "0f", "state": "setup", "role": "source", "peer": "b"}
    queued = {**STATUS, "state": "migrating", "migration": {**migration, "queue": queue}}
    handlers: Params = {
        "list": lambda params: {"enclaves": [queued]},
        "status": lambda params: queued,
    }
    with ControlServer(**handlers) as server:
        assert "migrating (queued, place 2)" in optmigctl(server, "list").out
        assert "place 2: host b is at its limit" in optmigctl(server, "status", "join").out


def test_cancel_says_what_became_of_it(optmigctl: Ctl) -> None:
    answer = {"migration_id": "0f", "state": "cancelling"}
    with ControlServer(cancel=lambda params: answer) as server:
        assert optmigctl(server, "cancel", "join").out == "migration 0f of join: cancelling\n"
        assert optmigctl(server, "cancel", "join", "--json").json == answer


def test_watch_prints_events_with_whose_they_are(optmigctl: Ctl) -> None:
    common = {"migration_id": "0f", "enclave": "join", "role": "source", "peer": "b"}
    events: list[Params] = [
        {"state": "active", **common},
        {"round": ROUND, **common},
        {"progress": PROGRESS, **common},
        {"from_a_newer_daemon": 1, **common},
    ]

    def watch(params: Params) -> Generator[Params, None, Params]:
        yield from events
        return {}

    with ControlServer(watch=watch) as server:
        plain = optmigctl(server, "watch")
        as_json = optmigctl(server, "watch", "join", "--json")
        assert [params for _, params in server.requests] == [{"enclave": ""}, {"enclave": "join"}]
    lines = plain.out.splitlines()
    assert lines[0] == "join (source, peer b): state active"
    assert "round 0 done: 262144 pages (1000 zero), 1 GiB in 900 ms" in lines[1]
    assert "256 MiB remaining at 1 GB/s, expected downtime 12.5 ms" in lines[2]
    assert len(lines) == 3
    assert [json.loads(line) for line in as_json.out.splitlines()] == events


def test_host_identity_prints_what_peers_type(optmigctl: Ctl) -> None:
    answer = {
        "name": "a",
        "listen": "192.0.2.1:7411",
        "key": IDENTITY.key_text,
        "fingerprint": IDENTITY.fingerprint,
    }
    with ControlServer(host_identity=lambda params: answer) as server:
        assert optmigctl(server, "host", "identity", "--json").json == answer
        plain = optmigctl(server, "host", "identity")
    assert plain.out.splitlines()[-1] == f"optmigctl host add a 192.0.2.1:7411 {IDENTITY.key_text}"
    answer["listen"] = "0.0.0.0:7411"
    with ControlServer(host_identity=lambda params: answer) as server:
        plain = optmigctl(server, "host", "identity")
    assert plain.out.splitlines()[-1] == f"optmigctl host add a ADDR:7411 {IDENTITY.key_text}"


def test_host_peers_are_listed(optmigctl: Ctl) -> None:
    with ControlServer(host_peers=lambda params: {"peers": [PEER]}) as server:
        assert optmigctl(server, "host", "peers", "--json").json == {"peers": [PEER]}
        row = optmigctl(server, "host", "peers").out.splitlines()[1]
    assert row.split() == ["b", "192.0.2.2:7411", IDENTITY.key_text, IDENTITY.fingerprint]


def test_host_add_pins_and_says_when_it_replaces(optmigctl: Ctl) -> None:
    peers: list[Params] = []
    with ControlServer(
        host_peers=lambda params: {"peers": peers}, host_add=lambda params: {}
    ) as server:
        done = optmigctl(server, "host", "add", "b", "192.0.2.2:7411", IDENTITY.key_text)
        assert (done.code, done.err) == (0, "")
        assert server.params_of("host_add") == {
            "name": "b",
            "address": "192.0.2.2:7411",
            "key": IDENTITY.key_text,
        }
        other = HostIdentity.from_private(b"\x02" * 32)
        peers.append(PEER | {"key": other.key_text, "fingerprint": other.fingerprint})
        done = optmigctl(server, "host", "add", "b", "192.0.2.2:7411", IDENTITY.key_text)
        assert f"it replaces the key {other.fingerprint}" in done.err
        done = optmigctl(server, "host", "add", "b", "192.0.2.2:7411", IDENTITY.key_text, "--json")
        assert done.json == PEER


@pytest.mark.parametrize(
    ("address", "key"), [("nowhere", IDENTITY.key_text), ("192.0.2.2:7411", "abc")]
)
def test_host_add_refuses_typing_mistakes_before_it_asks(
    optmigctl: Ctl, address: str, key: str
) -> None:
    with ControlServer() as server:
        done = optmigctl(server, "host", "add", "b", address, key)
        assert server.requests == []
    assert done.code == 2
    assert "expected ADDR:PORT" in done.err or "44 characters" in done.err


def test_host_remove_forgets(optmigctl: Ctl) -> None:
    with ControlServer(host_remove=lambda params: {}) as server:
        assert optmigctl(server, "host", "remove", "b").out == "peer b is forgotten\n"
        assert server.params_of("host_remove") == {"name": "b"}


def test_receipt_takes_an_enclave_or_a_migration(optmigctl: Ctl) -> None:
    answer = {"migration_id": "0f" * 16, "platform": "sim", "body": b"\x01\xff", "rounds": 3}
    with ControlServer(receipt=lambda params: answer) as server:
        as_json = optmigctl(server, "receipt", "join", "--json")
        plain = optmigctl(server, "receipt", MIGRATION["migration_id"])
        assert [params for _, params in server.requests] == [
            {"enclave": "join"},
            {"migration_id": MIGRATION["migration_id"]},
        ]
    assert as_json.json == answer | {"body": "01ff"}
    assert "protects nothing from the host" in plain.out


def test_version_works_with_and_without_a_daemon(optmigctl: Ctl, tmp_path: Path) -> None:
    daemon = {"name": "a", "version": "9.9", "platform": "sim"}
    with ControlServer(ping=lambda params: daemon) as server:
        assert optmigctl(server, "version", "--json").json == {
            "version": optmigd.__version__,
            "daemon": daemon,
        }
        assert "daemon a 9.9" in optmigctl(server, "version").out
    alone = optmigctl(None, "--socket", str(tmp_path / "none"), "version", "--json")
    assert alone.code == 0
    assert alone.json == {"version": optmigd.__version__, "daemon": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "x"),
        ("logs", "x"),
        ("wait", "x"),
        ("stop", "x"),
        ("check", "x", "b"),
        ("migrate", "x", "b"),
        ("cancel", "x"),
        ("receipt", "x"),
    ],
)
def test_an_unknown_enclave_is_a_refusal_everywhere(
    optmigctl: Ctl, arguments: tuple[str, ...]
) -> None:
    with ControlServer(**{arguments[0]: unknown_enclave}) as server:
        plain = optmigctl(server, *arguments)
        as_json = optmigctl(server, *arguments, "--json")
    assert plain.code == as_json.code == 3
    assert plain.out == ""
    assert "this host has no enclave 'x'" in plain.err
    assert as_json.json["error"]["code"] == "unknown-enclave"
    assert as_json.err == ""
