"""The control socket against clients that are careless, hostile, slow or of another user."""

import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from optmigd.daemon import control
from optmigd.daemon.control import ControlServer, bind_control_socket
from optmigd.protocol.errors import UnknownEnclave
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack
from tests.support.daemons import two_sites

Message = dict[str, Any]


class Raw:
    """A client that writes what it likes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()

    async def ask(self, number: int, method: str, **params: Any) -> None:
        await self.send({"id": number, "method": method, "params": params})

    async def send(self, message: object) -> None:
        await self.stream.send_all(frame(pack(message)))

    async def receive(self) -> Message | None:
        with trio.fail_after(5):
            while (payload := self._decoder.next_frame()) is None:
                content = await self.stream.receive_some(65536)
                if not content:
                    return None
                self._decoder.feed(content)
        message = unpack(payload)
        assert isinstance(message, dict)
        return message


class Served:
    """A control server whose methods are the test's."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.nursery = nursery
        self.cancelled: list[str] = []
        self.clients: list[Raw] = []
        self.listener = bind_control_socket(path)
        self.server = ControlServer(self.answer, structlog.get_logger())
        nursery.start_soon(trio.serve_listeners, self.server.serve, [self.listener])

    async def answer(self, emit: control.Emit, method: str, params: Message) -> Message:
        if method == "echo":
            return params
        if method == "count":
            for number in range(params["to"]):
                await emit({"number": number})
            return {}
        if method == "fail":
            raise UnknownEnclave("there is none", enclave="e1")
        if method == "crash":
            raise ZeroDivisionError
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.append(method)
            raise

    async def connect(self) -> Raw:
        self.clients.append(Raw(await trio.open_unix_socket(self.path)))
        return self.clients[-1]


@pytest.fixture
async def served(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Served]:
    serving = Served(tmp_path / "c.sock", nursery)
    yield serving
    for client in serving.clients:
        await client.stream.aclose()


async def test_events_then_result(served: Served) -> None:
    client = await served.connect()
    await client.ask(3, "count", to=2)
    assert [await client.receive() for _ in range(3)] == [
        {"id": 3, "event": {"number": 0}},
        {"id": 3, "event": {"number": 1}},
        {"id": 3, "result": {}},
    ]


async def test_a_slow_request_holds_up_no_other(served: Served) -> None:
    client = await served.connect()
    await client.ask(1, "forever")
    await client.ask(2, "echo", word="hello")
    assert await client.receive() == {"id": 2, "result": {"word": "hello"}}
    await client.send({"id": 1, "cancel": True})
    answer = await client.receive()
    assert answer is not None and answer["id"] == 1 and "error" in answer
    assert served.cancelled == ["forever"]
    await client.ask(1, "echo")
    assert await client.receive() == {"id": 1, "result": {}}


async def test_a_client_that_leaves_ends_its_requests(served: Served) -> None:
    client = await served.connect()
    await client.ask(1, "first")
    await client.ask(2, "second")
    await trio.testing.wait_all_tasks_blocked(0.05)
    await client.stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sorted(served.cancelled) == ["first", "second"]


async def test_errors_carry_code_message_and_fields(served: Served) -> None:
    client = await served.connect()
    await client.ask(1, "fail")
    assert await client.receive() == {
        "id": 1,
        "error": {
            "code": "unknown-enclave",
            "message": "there is none",
            "fields": {"enclave": "e1"},
        },
    }


async def test_a_crash_in_one_request_ends_nothing_else(served: Served) -> None:
    client = await served.connect()
    await client.ask(1, "crash")
    answer = await client.receive()
    assert answer is not None and answer["error"]["code"] == "internal"
    await client.ask(2, "echo")
    assert await client.receive() == {"id": 2, "result": {}}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack(">I", 1 << 31),
        frame(b"\xc1"),
        frame(pack([1, 2])),
        frame(pack({"id": 0, "method": "echo", "params": {}})),
        frame(pack({"id": True, "method": "echo", "params": {}})),
        frame(pack({"id": "1", "method": "echo", "params": {}})),
        frame(pack({"id": 1, "params": {}})),
        frame(pack({"id": 1, "method": "echo", "params": []})),
        frame(pack({"id": 1, "method": "echo", "params": [1]})),
        frame(pack({"id": 1, "method": "echo", "params": {}, "more": 1})),
        frame(pack({"id": 1, "method": 5, "params": {}})),
        frame(pack({"id": 1, "method": "forever"})) * 2,
        frame(b"\x9f" * 40),
    ],
    ids=range(13),
)
async def test_what_is_no_request_ends_the_connection(served: Served, content: bytes) -> None:
    client = await served.connect()
    await client.stream.send_all(content)
    answer = await client.receive()
    assert answer is not None and answer["id"] == 0
    assert answer["error"]["code"] == "remote-protocol"
    assert await client.receive() is None


async def test_a_frame_that_does_not_end_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FRAME_TIMEOUT_S", 0.3)
    idle, slow = await served.connect(), await served.connect()
    await slow.stream.send_all(b"\x00\x00\x00\x05ab")
    answer = await slow.receive()
    assert answer is not None and "rest of a frame" in answer["error"]["message"]
    assert await slow.receive() is None
    await idle.ask(1, "echo")
    assert await idle.receive() == {"id": 1, "result": {}}


async def test_requests_in_flight_are_bounded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_REQUESTS", 2)
    client = await served.connect()
    for number in (1, 2, 3):
        await client.ask(number, "forever")
    answer = await client.receive()
    assert answer is not None and "more than 2 requests" in answer["error"]["message"]
    assert await client.receive() is None
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert served.cancelled == ["forever", "forever"]


async def test_connections_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 1)
    first = await served.connect()
    await first.ask(1, "echo")
    assert await first.receive() is not None
    second = await served.connect()
    assert await second.receive() is None
    await first.stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.05)
    third = await served.connect()
    await third.ask(1, "echo")
    assert await third.receive() == {"id": 1, "result": {}}


async def test_a_client_that_reads_nothing_is_let_go(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "WRITE_TIMEOUT_S", 0.3)
    client = await served.connect()
    await client.ask(1, "count", to=1_000_000)
    await trio.sleep(0.8)
    with trio.fail_after(5):
        received = 0
        while content := await client.stream.receive_some(1 << 20):
            received += len(content)
    assert 0 < received < 20_000_000


async def test_other_users_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_credentials", lambda _: (1, os.geteuid() + 4242, 0))
    client = await served.connect()
    assert await client.receive() is None


async def test_a_dead_socket_is_replaced_and_a_file_is_not(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "s.sock"
    first = bind_control_socket(path)
    await first.aclose()
    assert path.exists()
    second = bind_control_socket(path)
    await second.aclose()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(Exception, match="cannot be") as caught:
        bind_control_socket(path)
    assert caught.value.code == "config"  # type: ignore[attr-defined]
    assert path.read_text() == "precious"


async def test_unknown_methods_and_parameters_are_named() -> None:
    async with two_sites() as pair:
        client = Raw(await trio.open_unix_socket(pair.a.directory / "control.sock"))
        await client.ask(1, "explode")
        answer = await client.receive()
        assert answer is not None and "found 'explode'" in answer["error"]["message"]
        await client.ask(2, "status", enclave="e1", colour="red")
        answer = await client.receive()
        assert answer is not None and "found also colour" in answer["error"]["message"]
        await client.ask(3, "status", enclave=7)
        answer = await client.receive()
        assert answer is not None and "expected str" in answer["error"]["message"]
        await client.ask(4, "ping")
        answer = await client.receive()
        assert answer is not None and answer["result"]["name"] == "a"
        await client.stream.aclose()


async def test_peers_are_pinned_and_forgotten_at_once() -> None:
    async with two_sites() as pair:
        client = pair.a.client
        identity = await pair.b.client.host_identity()
        peers = await client.host_peers()
        assert [(peer["name"], peer["key"]) for peer in peers] == [("b", identity["key"])]
        assert identity["fingerprint"] == peers[0]["fingerprint"]
        await client.host_remove("b")
        assert await client.host_peers() == []
        await client.host_add("b", identity["listen"], identity["key"])
        await pair.a.stop()
        await pair.a.start()
        assert [peer["address"] for peer in await client.host_peers()] == [identity["listen"]]
