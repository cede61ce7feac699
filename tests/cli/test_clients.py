"""The async and the blocking client: the same calls, the same errors."""

import inspect
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio

from optmigd.blocking import BlockingClient
from optmigd.client import Client
from optmigd.conversation import Conversation, DaemonUnreachable
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import (
    AlreadyReleased,
    ChannelClosed,
    HandoffUncertain,
    MigrationBlocked,
    MigrationFailed,
    UnknownEnclave,
)
from optmigd.protocol.wire import frame, pack
from tests.support.control_server import (
    MIGRATION,
    PROGRESS,
    STATUS,
    ControlServer,
    Params,
    unknown_enclave,
)

PEER: Params = {"name": "b", "address": "h:1", "key": "k"}

CALLS: list[tuple[str, tuple[Any, ...], str, Params, Params, Any]] = [
    # client's method, arguments, method on the wire, params, answer, returned
    ("ping", (), "ping", {}, {"name": "a"}, {"name": "a"}),
    ("list_enclaves", (), "list", {}, {"enclaves": [STATUS]}, [STATUS]),
    ("status", ("join",), "status", {"enclave": "join"}, STATUS, STATUS),
    ("wait", ("join",), "wait", {"enclave": "join"}, {"exit_status": 3}, {"exit_status": 3}),
    ("stop", ("join",), "stop", {"enclave": "join"}, {"exit_status": 3}, {"exit_status": 3}),
    ("check", ("join", "b"), "check", {"enclave": "join", "host": "b"}, {"x": 1}, {"x": 1}),
    ("cancel", ("join",), "cancel", {"enclave": "join"}, {"state": "x"}, {"state": "x"}),
    ("change", ("join",), "set", {"enclave": "join"}, {"on_stall": "x"}, {"on_stall": "x"}),
    ("host_identity", (), "host_identity", {}, {"name": "a"}, {"name": "a"}),
    ("host_peers", (), "host_peers", {}, {"peers": [1]}, [1]),
    ("host_add", ("b", "h:1", "k"), "host_add", PEER, {}, None),
    ("host_remove", ("b",), "host_remove", {"name": "b"}, {}, None),
    ("receipt", ("join",), "receipt", {"enclave": "join"}, {"x": b"\x00"}, {"x": b"\x00"}),
    ("receipt", ("0f" * 16,), "receipt", {"migration_id": "0f" * 16}, {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "method", "params", "answer", "returned"), CALLS)
async def test_each_call_asks_and_returns_the_same_in_both_clients(
    name: str,
    arguments: tuple[Any, ...],
    method: str,
    params: Params,
    answer: Params,
    returned: Any,
) -> None:
    with ControlServer(**{method: lambda _: answer}) as server:
        assert await getattr(Client(server.path), name)(*arguments) == returned
        blocking = getattr(BlockingClient(server.path), name)
        assert await trio.to_thread.run_sync(lambda: blocking(*arguments)) == returned
        assert server.requests == [(method, params)] * 2


async def test_launch_and_migrate_pass_the_same_params_in_both_clients(tmp_path: Path) -> None:
    launched = {"enclave": "e", "measurement": "", "platform": "sim", "tracker": "kernel"}
    with ControlServer(launch=lambda _: launched, migrate=lambda _: MIGRATION) as server:
        client, blocking = Client(server.path), BlockingClient(server.path)
        launch: dict[str, Any] = {
            "enclave": "e",
            "memory_bytes": 1,
            "dir": tmp_path,
            "shared": [tmp_path],
            "policy": b"p",
            "env": {"A": "1"},
            "args": ("x",),
            "stdin": "in",
        }
        assert await client.launch(tmp_path / "image", **launch) == launched
        start = await trio.to_thread.run_sync(lambda: blocking.launch(tmp_path / "image", **launch))
        assert start == launched
        options: dict[str, Any] = {"streams": 3, "verify": True}
        assert await client.migrate("e", "b", **options) == MIGRATION
        move = await trio.to_thread.run_sync(lambda: blocking.migrate("e", "b", **options))
        assert move == MIGRATION
        first, second, third, fourth = server.requests
    assert first == second
    assert first[1]["image"] == str(tmp_path / "image")
    assert first[1]["shared"] == [str(tmp_path)]
    assert third == fourth
    assert third[1]["streams"] == 3


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def shape(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(cls).items()
            if callable(member)
        }

    assert shape(Client) == shape(BlockingClient)


def pieces(params: Params) -> Generator[Params, None, Params]:
    """Program output of three pieces."""
    for number in range(3):
        yield {"content": b"%d" % number}
    return {}


async def test_output_comes_in_pieces() -> None:
    with ControlServer(logs=pieces) as server:
        async with Client(server.path).logs("join", follow=True) as output:
            assert [piece async for piece in output] == [b"0", b"1", b"2"]
        blocking = BlockingClient(server.path)
        assert await trio.to_thread.run_sync(lambda: list(blocking.logs("join"))) == [
            b"0",
            b"1",
            b"2",
        ]
        assert [params["follow"] for _, params in server.requests] == [True, False]


async def test_output_of_an_unknown_enclave_is_an_error_not_an_end() -> None:
    with ControlServer(logs=unknown_enclave) as server:
        async with Client(server.path).logs("x") as output:
            with pytest.raises(UnknownEnclave):
                await anext(output)
        blocking = BlockingClient(server.path)
        with pytest.raises(UnknownEnclave):
            await trio.to_thread.run_sync(lambda: list(blocking.logs("x")))


async def test_migration_events_reach_the_caller_in_order() -> None:
    def migrate(params: Params) -> Generator[Params, None, Params]:
        yield {"state": "active"}
        yield {"progress": PROGRESS}
        return MIGRATION

    with ControlServer(migrate=migrate) as server:
        seen: list[Params] = []
        await Client(server.path).migrate("join", "b", on_event=seen.append)
        blocking = BlockingClient(server.path)
        await trio.to_thread.run_sync(lambda: blocking.migrate("join", "b", on_event=seen.append))
    assert seen == [{"state": "active"}, {"progress": PROGRESS}] * 2


async def test_a_migration_that_came_to_nothing_raises_with_all_that_is_known() -> None:
    error = {"code": "uncertain", "message": "not confirmed", "fields": {"peer": "b"}}
    with ControlServer(migrate=lambda _: MIGRATION | {"error": error}) as server:
        with pytest.raises(HandoffUncertain) as raised:
            await Client(server.path).migrate("join", "b")
        assert raised.value.fields == {"peer": "b", "migration": MIGRATION}
        blocking = BlockingClient(server.path)
        with pytest.raises(HandoffUncertain):
            await trio.to_thread.run_sync(lambda: blocking.migrate("join", "b"))


async def test_blockers_arrive_as_objects() -> None:
    blocker = Blocker("memory", "b", "too little")

    def refuse(params: Params) -> Params:
        raise MigrationBlocked("no", blockers=[blocker])

    with ControlServer(migrate=refuse) as server, pytest.raises(MigrationBlocked) as raised:
        await Client(server.path).migrate("join", "b")
    assert raised.value.blockers == [blocker]


async def test_calls_of_one_client_run_at_the_same_time() -> None:
    """A slow call holds up no other, and errors come out bare, not in groups."""
    released = threading.Event()

    def wait(params: Params) -> Params:
        assert released.wait(10)
        return {"exit_status": 0}

    def cancel(params: Params) -> Params:
        released.set()
        raise AlreadyReleased("too late")

    with ControlServer(wait=wait, cancel=cancel) as server:
        client = Client(server.path)
        ended: list[Any] = []

        async def waiting() -> None:
            ended.append(await client.wait("join"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting)
            while not server.requests:
                await trio.lowlevel.checkpoint()
            with pytest.raises(AlreadyReleased):
                await client.cancel("join")
    assert ended == [{"exit_status": 0}]


async def test_cancelling_a_call_closes_its_connection() -> None:
    gone = threading.Event()

    def watch(params: Params) -> Generator[Params, None, Params]:
        try:
            while True:
                yield {"state": "active"}
        finally:
            gone.set()

    with ControlServer(watch=watch) as server:
        async with Client(server.path).watch() as events:
            async for _ in events:
                break
        assert await trio.to_thread.run_sync(gone.wait, 10)


async def test_events_are_not_lost_when_waiting_for_one_is_cancelled() -> None:
    proceed = threading.Event()

    def watch(params: Params) -> Generator[Params, None, Params]:
        assert proceed.wait(10)
        yield {"state": "active"}
        return {}

    with ControlServer(watch=watch) as server:
        async with Client(server.path).watch() as events:
            with trio.move_on_after(0.01) as scope:
                await anext(events)
            assert scope.cancelled_caught
            proceed.set()
            assert await anext(events) == {"state": "active"}
            assert await events.result() == {}


async def test_a_daemon_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.sock"
    with pytest.raises(DaemonUnreachable) as raised:
        await Client(path).ping()
    assert raised.value.fields == {"socket": str(path)}
    with pytest.raises(DaemonUnreachable):
        BlockingClient(path).ping()


def test_an_error_after_events_does_not_swallow_them() -> None:
    conversation = Conversation("migrate", {})
    error = {"code": "failed", "message": "no", "fields": {}}
    stream = frame(pack({"id": 1, "event": {"state": "active"}}))
    stream += frame(pack({"id": 1, "error": error}))
    events = []
    for position in range(len(stream)):  # byte by byte: no boundary is special
        events += conversation.receive_data(stream[position : position + 1])
    assert events == [{"state": "active"}]
    assert conversation.done
    with pytest.raises(MigrationFailed, match="no"):
        conversation.result()


def test_a_result_that_has_not_arrived_is_not_returned() -> None:
    with pytest.raises(ChannelClosed):
        Conversation("ping", {}).result()


IMPORT = """
import sys, threading, logging
import optmigd
assert not {"trio", "structlog", "click", "rich"} & set(sys.modules), sorted(sys.modules)
optmigd.BlockingClient, optmigd.OptmigError, optmigd.load_settings, optmigd.Settings
assert "trio" not in sys.modules
optmigd.Client
import structlog
assert not structlog.is_configured()
assert logging.getLogger().handlers == []
assert threading.active_count() == 1
assert dir(optmigd) == sorted(optmigd.__all__)
try:
    optmigd.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError("there is no such name")
"""


def test_importing_starts_nothing_and_configures_no_logging() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True, timeout=60)


def test_the_version_is_the_packages() -> None:
    import tomllib

    import optmigd

    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == optmigd.__version__
