"""What goes wrong, and with which exit code; a script must be able to tell them apart."""

import re
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from optmigd.cli.remedies import BLOCKER_REMEDIES, ERROR_REMEDIES
from optmigd.conversation import DaemonUnreachable
from optmigd.exitcodes import ExitCode, exit_code
from optmigd.protocol import errors
from optmigd.protocol.blockers import BLOCKER_CODES
from optmigd.protocol.errors import OptmigError, from_wire
from optmigd.protocol.wire import frame, pack
from tests.cli.conftest import Ctl
from tests.support.control_server import STATUS, ControlServer, HangUp, Params


def all_errors() -> list[type[OptmigError]]:
    found = [getattr(errors, name) for name in dir(errors)]
    return [each for each in found if isinstance(each, type) and issubclass(each, OptmigError)]


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "ERROR": 1,
        "USAGE": 2,
        "REFUSED": 3,
        "FAILED": 4,
        "CANCELLED": 5,
        "UNCERTAIN": 6,
        "UNREACHABLE": 7,
        "INTERRUPTED": 130,
    }
    text = Path(__file__).parents[2].joinpath("docs/operating.md").read_text("utf-8")
    table = dict(re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE))
    assert table == {str(code.value): code.name.lower() for code in ExitCode}


@pytest.mark.parametrize(
    ("code", "alone", "started"),
    [
        ("blocked", 3, 3),
        ("unknown-enclave", 3, 3),
        ("unknown-host", 3, 3),
        ("host-unreachable", 3, 3),
        ("host-key-mismatch", 3, 3),
        ("attestation-failed", 3, 3),
        ("already-migrating", 3, 3),
        ("released", 3, 3),
        ("migration", 3, 4),
        ("failed", 3, 4),
        ("timeout", 3, 4),
        ("not-converging", 3, 4),
        ("enclave", 3, 3),
        ("channel-closed", 1, 4),
        ("decrypt-failed", 1, 4),
        ("runtime-failed", 1, 4),
        ("a-newer-code", 1, 4),
        ("cancelled", 5, 5),
        ("uncertain", 6, 6),
        ("config", 2, 2),
    ],
)
def test_each_error_has_its_exit_code(code: str, alone: int, started: int) -> None:
    assert exit_code(from_wire(code, "", {})) == alone
    assert exit_code(from_wire(code, "", {"migration": {"state": "failed"}})) == started


def test_losing_the_daemon_says_nothing_about_the_migration() -> None:
    assert exit_code(DaemonUnreachable("")) == ExitCode.UNREACHABLE


def test_every_blocker_has_a_remedy_and_is_explained_in_the_documentation() -> None:
    assert set(BLOCKER_REMEDIES) == set(BLOCKER_CODES)
    text = Path(__file__).parents[2].joinpath("docs/operating.md").read_text("utf-8")
    missing = [code for code in BLOCKER_CODES if f"| `{code}` |" not in text]
    assert missing == []


def test_every_error_code_is_explained_in_the_documentation() -> None:
    text = Path(__file__).parents[2].joinpath("docs/operating.md").read_text("utf-8")
    codes = {each.code for each in all_errors()} | {"daemon-unreachable", "daemon-misunderstood"}
    assert set(ERROR_REMEDIES) <= codes
    assert sorted(code for code in codes if f"| `{code}` |" not in text) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("status",),
        ("status", "a", "b"),
        ("status", "a", "--colour"),
        ("migrate", "a", "b", "--mode", "teleport"),
        ("migrate", "a", "b", "--downtime-limit", "0"),
        ("migrate", "a", "b", "--max-bandwidth", "200Mb/s"),
        ("migrate", "a", "b", "--streams", "0"),
        ("migrate", "a", "b", "--timeout", "-1"),
        ("migrate", "a", "b", "--on-stall", "hope"),
        ("launch", "/nonexistent"),
        ("launch", "/bin/true", "--memory", "much"),
        ("launch", "/bin/true", "--env", "A"),
        ("launch", "/bin/true", "--env", "=A"),
        ("launch", "/bin/true", "--policy", "/nonexistent"),
        ("host", "add", "b"),
    ],
)
def test_usage_errors_ask_the_daemon_for_nothing(
    optmigctl: Ctl, arguments: tuple[str, ...]
) -> None:
    with ControlServer() as server:
        plain = optmigctl(server, *arguments)
        as_json = optmigctl(server, "--json", *arguments)
        assert server.requests == []
    assert plain.code == as_json.code == 2
    assert plain.out == ""
    assert plain.err
    assert as_json.json["error"]["code"] == "usage"


def test_no_daemon_is_a_code_of_its_own(optmigctl: Ctl, tmp_path: Path) -> None:
    path = tmp_path / "none.sock"
    done = optmigctl(None, "--socket", str(path), "list")
    assert done.code == 7
    assert f"expected a daemon on {path}; there is no such socket" in done.err
    assert "optmigd serve" in done.err


def test_a_socket_nobody_listens_on_is_told_apart(optmigctl: Ctl, tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    done = optmigctl(None, "--socket", str(path), "list", "--json")
    assert done.code == 7
    assert "nobody listens" in done.json["error"]["message"]
    assert done.json["error"]["fields"] == {"socket": str(path)}


def test_a_daemon_that_goes_away_is_reported(optmigctl: Ctl) -> None:
    def hang_up(params: Params) -> Params:
        raise HangUp

    with ControlServer(list=hang_up) as server:
        done = optmigctl(server, "list")
    assert done.code == 7
    assert "the daemon went away" in done.err


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff\xff\xff",
        frame(b"\xc1"),
        frame(pack([1])),
        frame(pack({"id": 1})),
        frame(pack({"id": 2, "result": {}})),
        frame(pack({"id": 1, "result": {}, "more": 1})),
        frame(pack({"id": 1, "result": 3})),
        frame(pack({"id": 1, "error": {"code": "x"}})),
    ],
)
def test_an_answer_that_is_none_is_reported(optmigctl: Ctl, answer: bytes) -> None:
    def say(params: Params) -> Generator[bytes, None, Params]:
        yield answer
        raise HangUp

    with ControlServer(list=say) as server:
        done = optmigctl(server, "list", "--json")
    assert done.code == 1
    assert done.json["error"]["code"] == "daemon-misunderstood"


def test_a_refused_user_reads_why(optmigctl: Ctl) -> None:
    """A request that was never read is answered without its number."""

    def refuse(params: Params) -> Generator[bytes, None, Params]:
        error = {"code": "refused", "message": "user 1 may not", "fields": {}}
        yield frame(pack({"id": None, "error": error}))
        raise HangUp

    with ControlServer(list=refuse) as server:
        done = optmigctl(server, "list")
    assert done.code == 1
    assert "user 1 may not" in done.err


def test_a_bug_is_reported_as_one(optmigctl: Ctl) -> None:
    broken = {key: value for key, value in STATUS.items() if key != "state"}
    with ControlServer(status=lambda params: broken) as server:
        done = optmigctl(server, "status", "join")
    assert done.code == 1
    assert "this is a bug in optmigctl" in done.err


def test_a_wrong_configuration_is_a_usage_error(
    optmigctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "optmigd.toml"
    file.write_text("colour = 1\n")
    monkeypatch.delenv("OPTMIGD_SOCKET", raising=False)
    monkeypatch.setattr("optmigd.config.paths.os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "optmigd").mkdir()
    file.rename(tmp_path / "optmigd" / "optmigd.toml")
    done = optmigctl(None, "list")
    assert done.code == 2
    assert "colour" in done.err
