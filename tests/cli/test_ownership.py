"""`optmigctl owner`, `recover` and `forget`: what they ask, print and exit with."""

import pytest

from optmigd.blocking import BlockingClient
from optmigd.protocol.errors import AlreadyReleased, MigrationError, Unconfirmed
from tests.cli.conftest import Ctl
from tests.support.control_server import ControlServer, Params, unknown_enclave

OWNER: Params = {
    "enclave": "join",
    "owner": "b",
    "owner_key": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
    "state": "running",
    "owner_generation": 2,
    "since": "2026-01-02T03:04:05.678Z",
    "since_s": 1767323045.678,
    "migration_id": "0f" * 16,
    "certain": True,
    "according_to": "b",
    "asked": ["b"],
    "unreachable": [],
}
RECOVERY: Params = {
    "migration_id": "0f" * 16,
    "enclave": "join",
    "role": "source",
    "peer": "b",
    "here": "released",
    "there": None,
    "meaning": "host b cannot be asked",
    "choices": [
        {"choice": "wait", "command": "", "meaning": "get host b back"},
        {"choice": "give-up", "command": "optmigctl recover …", "meaning": "end the delivery"},
    ],
    "decision": None,
}


def test_a_certain_owner_is_a_success(optmigctl: Ctl) -> None:
    with ControlServer(owner=lambda params: OWNER) as server:
        as_json = optmigctl(server, "owner", "join", "--json")
        done = optmigctl(server, "owner", "join")
        assert server.requests == [("owner", {"enclave": "join"})] * 2
    assert (as_json.code, as_json.json) == (0, OWNER)
    assert done.code == 0
    for shown in ("b", "running", "2026-01-02T03:04:05.678Z", "0f" * 16, "yes"):
        assert shown in done.out
    assert "unreachable" not in done.out


def test_an_uncertain_owner_has_the_exit_code_of_what_is_uncertain(optmigctl: Ctl) -> None:
    unsure = {"state": "released", "certain": False, "according_to": "a", "unreachable": ["b"]}
    nothing: Params = {"since": None, "since_s": None, "migration_id": None, "asked": []}
    with ControlServer(owner=lambda params: OWNER | unsure | nothing) as server:
        as_json = optmigctl(server, "owner", "join", "--json")
        done = optmigctl(server, "owner", "join")
    assert (as_json.code, done.code) == (6, 6)
    assert as_json.json["certain"] is False
    assert "certain           NO" in done.out
    assert "unreachable       b" in done.out
    assert "has not confirmed" in done.out


def test_recover_shows_the_choices_and_decides_nothing(optmigctl: Ctl) -> None:
    with ControlServer(recover=lambda params: RECOVERY) as server:
        as_json = optmigctl(server, "recover", "join", "--json")
        done = optmigctl(server, "recover", "0f" * 16)
        assert [params for _, params in server.requests] == [
            {"enclave": "join"},
            {"migration_id": "0f" * 16},
        ]
    assert (as_json.code, as_json.json) == (0, RECOVERY)
    assert done.code == 0
    assert "no answer" in done.out
    assert "choice: give-up (`optmigctl recover …`): end the delivery" in done.out


@pytest.mark.parametrize("decision", ["give-up", "discard"])
def test_a_decision_is_passed_on_with_and_without_its_confirmation(
    optmigctl: Ctl, decision: str
) -> None:
    def recover(params: Params) -> Params:
        if not params["confirmed"]:
            raise Unconfirmed("it cannot be taken back")
        return RECOVERY | {"decision": params["decision"]}

    with ControlServer(recover=recover) as server:
        refused = optmigctl(server, "recover", "join", f"--{decision}")
        as_json = optmigctl(server, "recover", "join", f"--{decision}", "--json")
        done = optmigctl(server, "recover", "join", f"--{decision}", "--yes", "--json")
    assert refused.code == as_json.code == 3
    assert "it cannot be taken back" in refused.err
    assert "--yes" in refused.err
    assert as_json.json["error"]["code"] == "unconfirmed"
    assert (done.code, done.json["decision"]) == (0, decision)


@pytest.mark.parametrize("arguments", [("--yes",), ("--give-up=x",)])
def test_a_confirmation_of_nothing_is_a_usage_error(
    optmigctl: Ctl, arguments: tuple[str, ...]
) -> None:
    with ControlServer() as server:
        assert optmigctl(server, "recover", "join", *arguments).code == 2
        assert server.requests == []


def test_what_cannot_be_settled_or_forgotten_is_refused(optmigctl: Ctl) -> None:
    def refuse(params: Params) -> Params:
        raise MigrationError("nothing to settle")

    def released(params: Params) -> Params:
        raise AlreadyReleased("nobody has confirmed")

    handlers = {"recover": refuse, "forget": released, "cancel": released, "stop": released}
    with ControlServer(owner=unknown_enclave, **handlers) as server:
        assert optmigctl(server, "recover", "join", "--discard", "--yes").code == 3
        assert optmigctl(server, "owner", "join").code == 3
        for command in ("forget", "cancel", "stop"):
            done = optmigctl(server, command, "join")
            assert done.code == 3
            assert "nobody has confirmed" in done.err
            assert "optmigctl recover ID" in done.err


def test_forget_says_which_way_is_lost(optmigctl: Ctl) -> None:
    moved = {"enclave": "join", "state": "moved", "lost_way": "b"}
    with ControlServer(forget=lambda params: moved) as server:
        as_json = optmigctl(server, "forget", "join", "--json")
        done = optmigctl(server, "forget", "join")
        server.handlers["forget"] = lambda params: moved | {"state": "exited", "lost_way": None}
        ended = optmigctl(server, "forget", "join")
    assert (as_json.code, as_json.json) == (0, moved)
    assert "join (moved) is forgotten" in done.out
    assert "it went to host b" in done.err
    assert (ended.out, ended.err) == ("enclave join (exited) is forgotten\n", "")


def test_the_blocking_client_asks_the_same() -> None:
    with ControlServer(
        owner=lambda params: OWNER, recover=lambda params: RECOVERY, forget=lambda params: params
    ) as server:
        client = BlockingClient(server.path)
        assert client.owner("join") == OWNER
        assert client.recover("0f" * 16, decision="discard", confirmed=True) == RECOVERY
        assert client.forget("join") == {"enclave": "join"}
        assert server.params_of("recover") == {
            "migration_id": "0f" * 16,
            "decision": "discard",
            "confirmed": True,
        }
