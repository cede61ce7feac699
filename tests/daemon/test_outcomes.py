"""How a migration that did not happen is named."""

from typing import Any

import pytest

from optmigd.config import Peer
from optmigd.daemon.agents import AgentConnectionLost
from optmigd.daemon.journal import InstanceRow
from optmigd.daemon.outcomes import why_not_moved
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import (
    ChannelClosed,
    MigrationBlocked,
    MigrationCancelled,
    MigrationFailed,
    OptmigError,
)

SHARED = Blocker("file-missing", "/data", "it is not there")
SOCKET = Blocker("socket", "fd 5", "a connection")
REPORTED = {"code": "cancelled", "message": "as its agent says", "fields": {}}


def why(
    error: OptmigError | None = None,
    *,
    ended: dict[str, Any] | None = None,
    blockers: tuple[Blocker, ...] = (),
    state: str = "running",
    dry_run: bool = False,
) -> OptmigError | None:
    row = InstanceRow("e1", 1, state, 1, exit_status=3)
    peer = Peer("b", "127.0.0.1", 7411, bytes(32))
    return why_not_moved(row, peer, ended or {}, list(blockers), error, dry_run=dry_run)


def test_a_check_without_blockers_has_nothing_against_it() -> None:
    assert why(dry_run=True, ended={"outcome": "checked", "error": None, "report": {}}) is None


def test_a_migration_that_ends_without_a_reason_has_failed() -> None:
    error = why()
    assert isinstance(error, MigrationFailed)
    assert "without a reason" in error.message


def test_blockers_of_both_sides_are_named_once_each() -> None:
    fields = {"code": SOCKET.code, "subject": SOCKET.subject, "message": SOCKET.message}
    ended = {"outcome": "failed", "report": {"blockers": [fields]}}
    error = why(MigrationBlocked("", blockers=[SHARED]), ended=ended, blockers=(SHARED,))
    assert isinstance(error, MigrationBlocked)
    assert {b.code for b in error.blockers} == {SHARED.code, SOCKET.code}
    assert len(error.blockers) == 2


def test_what_the_agent_says_counts_where_the_daemon_knows_of_nothing() -> None:
    assert isinstance(why(ended={"outcome": "cancelled", "error": REPORTED}), MigrationCancelled)


@pytest.mark.parametrize(("outcome", "code"), [("failed", "cancelled"), ("cancelled", "failed")])
def test_an_agent_after_one_that_crashed_knows_better(outcome: str, code: str) -> None:
    error = why(AgentConnectionLost(), ended={"outcome": outcome, "error": REPORTED})
    assert error is not None
    assert error.code == code


def test_a_broken_connection_is_a_failed_migration_with_its_cause() -> None:
    error = why(ChannelClosed("a data stream broke"))
    assert isinstance(error, MigrationFailed)
    assert error.message == "a data stream broke; the enclave runs on here"
    assert error.fields["cause"] == "channel-closed"


def test_a_program_that_has_ended_is_the_reason_whatever_else_there_is() -> None:
    error = why(ChannelClosed("lost"), blockers=(SHARED,), state="exited")
    assert isinstance(error, MigrationFailed)
    assert error.fields["exit_status"] == 3
