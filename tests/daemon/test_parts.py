"""The small parts of the daemon, each on its own."""

# What a flat nursery raises needs a nursery inside `raises`; looking at a file blocks nobody here.
# ruff: noqa: ASYNC240, PT012

import hashlib
import os
import socket
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from optmigd.config import Peer, load_settings
from optmigd.daemon.capacity import AGENT_BYTES, SETTLE_S, memory_blocker, memory_settles
from optmigd.daemon.events import BOUND, EventHub
from optmigd.daemon.images import CHUNK_BYTES, ImageStore
from optmigd.daemon.journal import InstanceRow, Journal, MigrationRow
from optmigd.daemon.nurseries import first_of, open_flat_nursery
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.streams import StreamDuplicates, check_congestion_control, dial_stream
from optmigd.daemon.tickets import TICKET_LIFETIME_S, Tickets
from optmigd.protocol.errors import (
    ChannelClosed,
    ConfigError,
    ImageInvalid,
    MigrationFailed,
    RemoteProtocolError,
)
from optmigd.protocol.link import DATA_PREAMBLE
from optmigd.protocol.wire import frame

ELF = (b"\x7fELF\x02\x01\x01".ljust(16, b"\x00") + b"\x02\x00\x3e\x00").ljust(64, b"\x00")

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()


async def ignore_stream(index: int, stream: socket.socket) -> None:
    """Take a data stream."""


async def test_a_ticket_is_worth_one_stream(autojump_clock: trio.testing.MockClock) -> None:
    tickets = Tickets()
    first, second = tickets.issue(b"m" * 16, 2, ignore_stream)
    assert len(first) == 32 and first != second
    assert tickets.redeem(os.urandom(32)) is None
    assert tickets.redeem(second) == (1, ignore_stream)
    assert tickets.redeem(second) is None
    assert tickets.redeem(first[:-1]) is None
    await trio.sleep(TICKET_LIFETIME_S + 1)
    assert tickets.redeem(first) is None


async def test_withdrawn_tickets_are_worth_nothing() -> None:
    tickets = Tickets()
    (ours,) = tickets.issue(b"m" * 16, 1, ignore_stream)
    (other,) = tickets.issue(b"o" * 16, 1, ignore_stream)
    tickets.withdraw(b"m" * 16)
    assert tickets.redeem(ours) is None
    assert tickets.redeem(other) == (0, ignore_stream)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 64, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
async def test_images_travel_in_chunks(tmp_path: Path, size: int) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = (ImageStore(tmp_path / name, 1 << 20) for name in ("here", "there"))
    content = ELF + os.urandom(size)
    (tmp_path / "image").write_bytes(content)
    sha256, size_bytes = await here.add(tmp_path / "image")
    assert (sha256, size_bytes) == (hashlib.sha256(content).digest(), len(content))
    assert here.has(sha256) and not there.has(sha256)
    offset = 0

    async def next_chunk() -> tuple[int, bytes, bool]:
        nonlocal offset
        chunk = await here.read(sha256, offset)
        assert len(chunk) <= CHUNK_BYTES
        offset += len(chunk)
        return offset - len(chunk), chunk, offset == size_bytes

    await there.receive(sha256, size_bytes, next_chunk)
    assert there.path(sha256).read_bytes() == content
    assert there.path(sha256).stat().st_mode & 0o777 == 0o555
    there.remove_unused([])
    assert list((tmp_path / "there").iterdir()) == []


async def test_half_an_image_leaves_nothing(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, 1 << 20)
    content = ELF + b"x"

    async def broken() -> tuple[int, bytes, bool]:
        raise ChannelClosed("gone")

    async def endless() -> tuple[int, bytes, bool]:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(ChannelClosed):
        await store.receive(hashlib.sha256(content).digest(), len(content), broken)
    with trio.move_on_after(0.05):
        await store.receive(hashlib.sha256(content).digest(), len(content), endless)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", ELF[:16], ELF.replace(b"\x3e", b"\x28"), b"MZ" + ELF]
)
async def test_other_files_are_no_images(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ImageInvalid, match="build it with optmig-cc"):
        await ImageStore(tmp_path / "store", 1 << 20).add(tmp_path / "file")
    with pytest.raises(ImageInvalid):
        await ImageStore(tmp_path / "store", 1 << 20).add(Path("file"))
    assert list((tmp_path / "store").iterdir()) == []


async def test_a_fifo_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with trio.fail_after(2), pytest.raises(ImageInvalid, match="there is no file"):
        await ImageStore(tmp_path, 1 << 20).add(tmp_path / "fifo")


async def test_the_journal_remembers(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = await Journal.open(path)
    instance = InstanceRow("e1", 1, "running", 3, facts={"policy": b"\x00\xff", "shared": ["/x"]})
    arrival = MigrationRow(b"m" * 16, "e1", 1, "destination", b"k" * 32, 2, "active", 1.5)
    arrival.resumed = b"sealed"
    await journal.save_instance(instance)
    instance.state, instance.exit_status = "exited", 4
    await journal.save_handover(instance, arrival)
    await journal.close()
    again = await Journal.open(path)
    assert await again.instances() == [instance]
    assert await again.migration(b"m" * 16) == arrival
    assert await again.unfinished_migrations() == [arrival]
    arrival.state = "completed"
    await again.save_migration(arrival)
    assert await again.unfinished_migrations() == []
    assert await again.completed_migration("e1") == arrival
    assert await again.completed_migration("e2") is None
    await again.delete_instance("e1", 1)
    assert await again.instances() == []
    await again.close()


async def test_slow_watchers_lose_events_and_hold_up_nobody() -> None:
    hub = EventHub()
    with (
        hub.subscribe() as slow,
        hub.subscribe(enclave="e2") as other,
        hub.subscribe(migration_id="m1") as ours,
    ):
        for number in range(BOUND + 10):
            hub.publish({"enclave": "e1", "migration_id": "m1", "number": number})
            assert (await ours.receive())["number"] == number
        received = [slow.receive_nowait()["number"] for _ in range(BOUND)]
        assert received == list(range(BOUND))
        for channel in (slow, other):
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()
    hub.publish({"enclave": "e1", "migration_id": "m1"})


def new_record() -> tuple[MigrationRecord, list[dict[str, object]]]:
    told: list[dict[str, object]] = []
    record = MigrationRecord(
        b"\x01" * 16,
        "e1",
        "source",
        "b",
        source="a",
        destination="b",
        mode="precopy",
        publish=told.append,
    )
    return record, told


def test_final_states_are_the_daemons_to_set() -> None:
    record, told = new_record()
    record.take("state", {"state": "active"})
    record.take("state", {"state": "active"})
    record.take("state", {"state": "completed"})
    assert record.state == "active"
    record.finish("failed", {"code": "failed", "message": "", "fields": {}})
    record.take("state", {"state": "switchover"})
    assert record.state == "failed"
    assert [event["state"] for event in told] == ["active", "failed"]


def test_what_is_not_known_yet_is_nil_and_what_is_no_figure_is_refused() -> None:
    record, _ = new_record()
    record.take("progress", {"round_no": 1, "expected_downtime_ms": None})
    assert record.progress["expected_downtime_ms"] is None
    for event, params in (
        ("state", {"state": "flying"}),
        ("state", {}),
        ("progress", {"round_no": "one"}),
        ("round", {"pages": True}),
    ):
        with pytest.raises(RemoteProtocolError):
            record.take(event, params)


def test_the_result_has_every_key_even_when_nothing_is_known() -> None:
    record, _ = new_record()
    expected = {
        *("migration_id", "enclave", "source", "destination", "mode", "state", "platform"),
        *("rounds", "total_bytes", "transferred_bytes", "zero_pages", "setup_time_ms"),
        *("downtime_ms", "total_time_ms", "throughput_mbps", "state_digest", "queued_time_ms"),
        *("throttle_permille", "held_back_ms"),
        *("owner_generation", "verified", "downtime_parts_ms"),
    }
    assert set(record.result()) == expected
    record.finish("failed", {"code": "failed", "message": "why", "fields": {}})
    assert set(record.result()) == expected | {"error"}


def test_memory_counts_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    monkeypatch.setattr("optmigd.daemon.capacity._meminfo", lambda _: 4 * gib)
    assert memory_blocker("b", 3 * gib, []) is None
    assert memory_blocker("b", 4 * gib, []) is not None
    promised = memory_blocker("b", 3 * gib, [(gib, None)])
    assert promised is not None and f"{gib + AGENT_BYTES} are promised" in promised.message


async def test_memory_that_comes_free_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    gib = 1 << 30
    available = iter([1 * gib, 2 * gib, 2 * gib, 3 * gib, 3 * gib, 3 * gib])
    monkeypatch.setattr("optmigd.daemon.capacity._meminfo", lambda _: next(available))
    asked = iter([False, False, True])
    await memory_settles(lambda: next(asked), lambda: False)
    assert next(asked, None) is None

    await memory_settles(lambda: False, lambda: False)  # nothing comes free any more
    assert next(available, None) is None


async def test_memory_of_an_enclave_that_is_leaving_is_waited_for_before_any_comes_free(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr("optmigd.daemon.capacity._meminfo", lambda _: 1 << 30)
    leaves_at_s = trio.current_time() + 5.0
    await memory_settles(lambda: False, lambda: trio.current_time() < leaves_at_s)
    assert leaves_at_s <= trio.current_time() < leaves_at_s + 1.0

    started_s = trio.current_time()
    await memory_settles(lambda: False, lambda: True)  # it never ends
    assert trio.current_time() == pytest.approx(started_s + SETTLE_S)


@pytest.mark.parametrize("wanted", ["", *ALLOWED])
async def test_a_data_stream_begins_with_its_ticket(nursery: trio.Nursery, wanted: str) -> None:
    ticket = os.urandom(32)
    heard: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        heard.append(await stream.receive_some(100))
        await stream.send_all(b"\x01")
        heard.append(await stream.receive_some(100))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    host, port = listeners[0].socket.getsockname()[:2]
    with await dial_stream(
        Peer("b", host, port, b"k" * 32),
        ticket,
        load_settings().limits,
        congestion_control=wanted,
    ) as stream:
        used = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert used.rstrip(b"\0").decode() == (wanted or "reno")
        assert stream.getblocking()
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert heard == [DATA_PREAMBLE + ticket, b""]
    nursery.cancel_scope.cancel()


async def test_a_refused_ticket_is_a_failed_migration(nursery: trio.Nursery) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, refuse, listeners)
    host, port = listeners[0].socket.getsockname()[:2]
    peer = Peer("b", host, port, b"k" * 32)
    with pytest.raises(MigrationFailed, match="refused the ticket"):
        await dial_stream(peer, b"t" * 32, load_settings().limits, congestion_control="")
    nursery.cancel_scope.cancel()


def test_a_congestion_control_that_the_kernel_lacks_is_refused_at_the_start() -> None:
    for name in ("", *ALLOWED):
        check_congestion_control(name)
    with pytest.raises(ConfigError, match="congestion_control") as caught:
        check_congestion_control("hope")
    assert caught.value.fields["key"] == "migration.congestion_control"


def test_cutting_ends_both_ends_of_a_stream() -> None:
    ours, theirs = socket.socketpair()
    with ours.dup() as agents, theirs:
        duplicates = StreamDuplicates()
        duplicates.keep(0, ours)
        duplicates.cut()
        assert theirs.recv(1) == b""
        assert agents.recv(1) == b""


def test_a_frame_goes_on_the_first_stream_whole_or_not_at_all() -> None:
    duplicates = StreamDuplicates(2)
    first, first_end = socket.socketpair()
    second, second_end = socket.socketpair()
    with first_end, second_end:
        duplicates.keep(1, second)
        duplicates.keep(0, first)
        duplicates.send_frame(b"token")
        assert first_end.recv(100) == frame(b"token")
        second_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            second_end.recv(1)
        with suppress(BlockingIOError):
            while True:  # the peer takes nothing any more
                first.send(bytes(1 << 16), socket.MSG_DONTWAIT)
        with pytest.raises(ChannelClosed):
            duplicates.send_frame(b"token")
        first_end.close()
        with pytest.raises(ChannelClosed, match="broke"):
            duplicates.send_frame(b"token")
        duplicates.close()
        with pytest.raises(ChannelClosed, match="gone"):
            duplicates.send_frame(b"token")


async def test_a_flat_nursery_raises_the_error_itself() -> None:
    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ChannelClosed):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ChannelClosed("body")
    with pytest.raises(ZeroDivisionError):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, ChannelClosed("expected"))
            nursery.start_soon(fail, ZeroDivisionError())
    with trio.CancelScope() as scope:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught


async def test_first_of_returns_with_the_first(autojump_clock: trio.testing.MockClock) -> None:
    start_s = trio.current_time()
    await first_of(partial(trio.sleep, 5), partial(trio.sleep, 2), trio.sleep_forever)
    assert trio.current_time() - start_s == pytest.approx(2)


async def test_a_damaged_journal_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = await Journal.open(path)
    await journal.save_instance(InstanceRow("e1", 1, "running", 1))
    await journal.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE instances SET facts = X'81'")
    connection.commit()
    connection.close()
    journal = await Journal.open(path)
    with pytest.raises(ConfigError, match="'e1' is damaged"):
        await journal.instances()
    await journal.close()
