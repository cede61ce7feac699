"""Which of many errors a shim reports when one side has given up and everything breaks."""

import itertools

import pytest
import structlog
import structlog.testing
import trio

from optmigd.enclave_shim.migration.conversation import PeerRefused
from optmigd.enclave_shim.migration.report import root_cause
from optmigd.protocol.errors import ChannelClosed, MigrationFailed, RemoteProtocolError

LOG: structlog.stdlib.BoundLogger = structlog.get_logger()


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    """As nested nurseries raise them."""
    return BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [errors[0]]), *errors[1:]])


def cancelled() -> trio.Cancelled:
    caught: list[trio.Cancelled] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                caught.append(error)
                raise

    trio.run(main)
    return caught[0]


@pytest.mark.parametrize("first", range(4))
def test_the_peer_says_most_and_a_broken_stream_least(first: int) -> None:
    peer, own = PeerRefused("the peer"), RemoteProtocolError("found here")
    ranking: list[BaseException] = [peer, own, ChannelClosed("a stream"), cancelled()]
    for order in itertools.permutations(ranking[first:]):
        expected = None if first == 3 else ranking[first]
        assert root_cause(group(*order), LOG) is expected


def test_a_file_that_failed_is_named_before_a_stream() -> None:
    cause = root_cause(group(ChannelClosed("a stream"), OSError(5, "it cannot be read")), LOG)
    assert isinstance(cause, MigrationFailed)
    assert "it cannot be read" in cause.message


def test_a_bug_ends_the_migration_and_is_logged() -> None:
    with structlog.testing.capture_logs() as logged:
        cause = root_cause(group(ChannelClosed("a stream"), ZeroDivisionError("oops")), LOG)
    assert [entry["event"] for entry in logged] == ["migration_failed_unexpectedly"]
    assert isinstance(cause, MigrationFailed)
    assert "a bug in the shim agent: ZeroDivisionError" in cause.message


def test_what_ends_the_process_is_not_caught() -> None:
    with pytest.raises(KeyboardInterrupt):
        root_cause(group(ChannelClosed("a stream"), KeyboardInterrupt()), LOG)
