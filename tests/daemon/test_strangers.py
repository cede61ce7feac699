"""Who knocks on the TCP port and is no peer, or is a peer and does not keep to the protocol."""

import hashlib
import json
import os
from contextlib import suppress

import pytest
import trio
from nacl.bindings import crypto_scalarmult_base

from optmigd.config import HostIdentity, Peer
from optmigd.daemon.link import Link, dial
from optmigd.protocol.errors import (
    ChannelClosed,
    HandshakeFailed,
    HostKeyMismatch,
    HostUnreachable,
    MigrationFailed,
    OptmigError,
    UnknownEnclave,
    VersionMismatch,
)
from optmigd.protocol.link import (
    DATA_PREAMBLE,
    LINK_PREAMBLE,
    Abort,
    Accepted,
    Finished,
    ImageChunk,
    ImageWanted,
    LinkChannel,
    LinkMessage,
    Offer,
    Query,
    QueryResult,
    Redeliver,
    Resumed,
    Session,
    Token,
)
from optmigd.protocol.noise import keypair
from optmigd.protocol.versions import Window
from tests.support.daemons import Pair, eventually, two_sites, wait_released

SHORT = {"limits.handshake_timeout_s": 0.5}


async def knock(pair: Pair, content: bytes, *, local: str = "127.0.0.1") -> trio.SocketStream:
    assert pair.b.daemon is not None
    stream = await trio.open_tcp_stream(*pair.b.daemon.address, local_address=local)
    await stream.send_all(content)
    return stream


async def closed_within(stream: trio.SocketStream, timeout_s: float) -> bytes:
    """Return what was said before the connection was closed."""
    said = b""
    with trio.fail_after(timeout_s), suppress(trio.BrokenResourceError):
        while content := await stream.receive_some(4096):
            said += content
    await stream.aclose()
    return said


async def link_as_a(pair: Pair) -> Link:
    """Dial b with the key of a, as a hostile a would."""
    assert pair.b.daemon is not None
    peer = Peer("b", *pair.b.daemon.address, pair.b.identity.public)
    return await dial(peer, pair.a.identity, "a", pair.a.settings.limits)


def offer(pair: Pair, image: bytes, **changed: object) -> Offer:
    fields: dict[str, object] = {
        "migration_id": os.urandom(16),
        "enclave": "e1",
        "generation": 1,
        "image_sha256": hashlib.sha256(image).digest(),
        "image_bytes": len(image),
        "memory_bytes": 1 << 20,
        "resident_bytes": 1 << 20,
        "streams": 2,
        "policy": b"",
        "own_dir": "",
        "shared": [],
        "dry_run": False,
        "mode": "precopy",
        **changed,
    }
    return Offer(**fields)  # type: ignore[arg-type]


async def assert_still_works(pair: Pair) -> None:
    await pair.launch("after")
    assert (await pair.a.client.migrate("after", "b"))["state"] == "completed"


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        LINK_PREAMBLE + b"\xff\xff\xff\xff" + b"x" * 100,
        LINK_PREAMBLE + b"\x00\x00\x00\x20" + os.urandom(32),
        DATA_PREAMBLE + os.urandom(32),
        DATA_PREAMBLE + b"\x00" * 32,
    ],
    ids=["http", "zeros", "oversized", "noise", "ticket", "zero-ticket"],
)
async def test_garbage_is_dropped_without_an_answer(content: bytes) -> None:
    async with two_sites() as pair:
        stream = await knock(pair, content)
        assert await closed_within(stream, 5) == b""
        await assert_still_works(pair)


@pytest.mark.parametrize(
    "content", [b"", b"OPT", LINK_PREAMBLE, DATA_PREAMBLE + b"half", LINK_PREAMBLE + b"\x00\x00"]
)
async def test_half_open_connections_are_dropped_in_time(content: bytes) -> None:
    async with two_sites(**SHORT) as pair:
        stream = await knock(pair, content)
        start_s = trio.current_time()
        assert await closed_within(stream, 5) == b""
        assert 0.3 < trio.current_time() - start_s < 3


async def test_a_byte_at_a_time_is_too_slow() -> None:
    async with two_sites(**SHORT) as pair:
        stream = await knock(pair, b"")
        sent = 0
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            for byte in LINK_PREAMBLE + b"\x00" * 100:
                await stream.send_all(bytes([byte]))
                sent += 1
                await trio.sleep(0.1)
        assert sent < 20
        await stream.aclose()


async def test_a_crowd_of_one_address_does_not_keep_peers_out() -> None:
    async with two_sites(**{"limits.max_half_open": 8, "limits.handshake_timeout_s": 30}) as pair:
        crowd = [await knock(pair, b"OPT", local="127.0.0.2") for _ in range(20)]
        for stream in crowd[4:]:
            assert await closed_within(stream, 2) == b""
        await assert_still_works(pair)
        for stream in crowd[:4]:
            await stream.aclose()


async def test_tickets_open_one_stream_once() -> None:
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"source": {"hold_at": "switchover"}}))
        await pair.a.client.migrate("e1", "b", detach=True)

        def tickets() -> list[bytes]:
            return [first for first in pair.wire.first_bytes if first.startswith(DATA_PREAMBLE)]

        held = pair.a.directory / "state/enclaves/e1@1/held"
        await eventually(held.exists, "both streams have been used")
        assert [len(ticket) for ticket in tickets()] == [40, 40]
        for ticket in tickets():
            assert await closed_within(await knock(pair, ticket), 5) == b""
        assert (await pair.a.client.cancel("e1"))["state"] == "cancelled"


async def test_unpinned_host_is_told_so_and_nothing_else() -> None:
    async with two_sites() as pair:
        assert pair.b.daemon is not None
        private = os.urandom(32)
        stranger = HostIdentity(private, crypto_scalarmult_base(private))
        peer = Peer("b", *pair.b.daemon.address, pair.b.identity.public)
        async with await dial(peer, stranger, "mallory", pair.a.settings.limits) as link:
            with suppress(ChannelClosed):  # it may be closed already
                await link.send(Query("ping", {}))
            with pytest.raises(HandshakeFailed, match="host b does not know the key SHA256:"):
                await link.expect(QueryResult, timeout_s=5)


async def test_answering_host_must_prove_its_pinned_key() -> None:
    async with two_sites() as pair:
        assert pair.b.daemon is not None
        peer = Peer("b", *pair.b.daemon.address, os.urandom(32))
        with pytest.raises(HostKeyMismatch, match="expected host b with key"):
            await dial(peer, pair.a.identity, "a", pair.a.settings.limits)


async def test_another_protocol_version_is_refused_with_both_windows() -> None:
    async with two_sites() as pair:
        newer = LinkChannel(
            initiator=True,
            static=keypair(pair.a.identity.private),
            ephemeral_private=os.urandom(32),
            versions=Window(7, 9),
            host_name="a",
        )
        stream = await knock(pair, LINK_PREAMBLE + newer.start())
        with pytest.raises(VersionMismatch, match="this host speaks 7 to 9"):
            newer.receive_data(await stream.receive_some(4096))
        assert await closed_within(stream, 5) == b""
        await assert_still_works(pair)


async def test_a_port_where_something_else_listens(nursery: trio.Nursery) -> None:
    async with two_sites(**SHORT) as pair:

        async def silent(stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        async def web(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        for handler, error in ((silent, HostUnreachable), (web, OptmigError)):
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            host, port = listeners[0].socket.getsockname()[:2]
            peer = Peer("b", host, port, pair.b.identity.public)
            with pytest.raises(error):
                await dial(peer, pair.a.identity, "a", pair.a.settings.limits)


@pytest.mark.parametrize(
    "message",
    [Session(b"x"), Token(b"x"), Resumed(b"x"), Accepted([]), Finished("x"), ImageWanted()],
    ids=lambda message: type(message).__name__,
)
async def test_a_conversation_begins_as_it_must(message: LinkMessage) -> None:
    async with two_sites() as pair, await link_as_a(pair) as link:
        await link.send(message)
        answer = await link.receive(timeout_s=5)
        assert isinstance(answer, Abort) and answer.code == "remote-protocol"
        with pytest.raises(ChannelClosed):
            await link.receive(timeout_s=5)


async def test_an_altered_image_is_never_kept() -> None:
    async with two_sites() as pair:
        image = pair.image().read_bytes()
        for chunk, code in (
            (ImageChunk(0, b"y" * len(image), True), "failed"),
            (ImageChunk(0, image + b"more", True), "failed"),
            (ImageChunk(7, image[7:], True), "failed"),
            (ImageChunk(0, image[:-1], True), "failed"),
            (Session(b"no image"), "remote-protocol"),
        ):
            async with await link_as_a(pair) as link:
                await link.send(offer(pair, image))
                await link.expect(ImageWanted, timeout_s=5)
                await link.send(chunk)
                answer = await link.receive(timeout_s=5)
                assert isinstance(answer, Abort) and answer.code == code
        assert list((pair.b.directory / "state/images").iterdir()) == []
        assert pair.b.instances == []


async def test_an_image_that_is_none_is_refused_although_its_digest_fits() -> None:
    async with two_sites() as pair, await link_as_a(pair) as link:
        image = b"#!/bin/sh\necho owned\n"
        await link.send(offer(pair, image))
        await link.expect(ImageWanted, timeout_s=5)
        await link.send(ImageChunk(0, image, True))
        answer = await link.receive(timeout_s=5)
        assert isinstance(answer, Abort) and answer.code == "image-invalid"
        assert list((pair.b.directory / "state/images").iterdir()) == []


async def test_too_large_an_image_is_refused_before_it_is_sent() -> None:
    async with (
        two_sites(**{"limits.max_image_bytes": 1000}) as pair,
        await link_as_a(pair) as link,
    ):
        await link.send(offer(pair, b"x" * 1001))
        refused = await link.receive(timeout_s=5)
        assert [blocker.code for blocker in refused.blockers] == ["image-size"]  # type: ignore[union-attr]
        assert await link.receive(timeout_s=5) == Finished("refused")


async def test_a_name_that_is_no_name_is_refused() -> None:
    async with two_sites() as pair, await link_as_a(pair) as link:
        await link.send(offer(pair, b"x", enclave="../../etc"))
        answer = await link.receive(timeout_s=5)
        assert isinstance(answer, Abort) and answer.code == "enclave"
        assert pair.b.instances == []


async def test_an_offer_cannot_be_repeated() -> None:
    async with two_sites() as pair:
        await pair.launch()
        result = await pair.a.client.migrate("e1", "b")
        repeated = offer(
            pair, b"x", enclave="e2", migration_id=bytes.fromhex(result["migration_id"])
        )
        async with await link_as_a(pair) as link:
            await link.send(repeated)
            answer = await link.receive(timeout_s=5)
        assert isinstance(answer, Abort) and "offered before" in answer.message


async def test_an_older_generation_does_not_replace_a_newer_one() -> None:
    """A source that went back in time offers what has long moved on."""
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        await pair.b.client.migrate("e1", "a")
        async with await link_as_a(pair) as link:
            await link.send(offer(pair, b"x", generation=1))
            refused = await link.receive(timeout_s=5)
        assert [blocker.code for blocker in refused.blockers] == ["enclave-exists"]  # type: ignore[union-attr]


async def test_a_new_offer_ends_what_waits_on_a_dead_link() -> None:
    """The source's host has vanished without a word, and is back."""
    async with two_sites() as pair:
        image = pair.image().read_bytes()
        links = []
        for _ in range(2):
            link = await link_as_a(pair)
            links.append(link)
            await link.send(offer(pair, image))
            if len(links) == 1:
                await link.expect(ImageWanted, timeout_s=5)
                await link.send(ImageChunk(0, image, True))
            assert len((await link.expect(Accepted, timeout_s=10)).tickets) == 2
        with pytest.raises(ChannelClosed):
            await links[0].receive(timeout_s=5)
        for link in links:
            await link.aclose()
        await eventually(lambda: pair.b.instances == [], "b has destroyed both")


async def test_tokens_for_what_is_not_here_are_refused() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        async with await link_as_a(pair) as link:
            await link.send(Redeliver(os.urandom(16), b"token"))
            with pytest.raises(MigrationFailed, match="nothing that this token could start"):
                await link.expect(Resumed, timeout_s=5)


async def test_a_peer_learns_of_its_own_enclaves_alone() -> None:
    async with two_sites() as pair:
        await pair.b.client.launch(pair.image(), enclave="private")
        for method, params in (
            ("status", {"enclave": "private", "generation": 0}),
            ("wait", {"enclave": "private", "generation": 0}),
            ("logs", {"enclave": "private", "generation": 0}),
            ("status", {"enclave": "absent", "generation": 0}),
        ):
            async with await link_as_a(pair) as link:
                await link.send(Query(method, params))
                with pytest.raises(UnknownEnclave):
                    await link.expect(QueryResult, timeout_s=5)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("stop", {"enclave": "e1"}),
        ("migrate", {"enclave": "e1", "host": "a"}),
        ("", {}),
        ("status", {"enclave": 5, "generation": 0}),
        ("status", {"enclave": "e1"}),
        ("status", {"enclave": "e1", "generation": True}),
        ("ping", {"surprise": 1}),
        ("outcome", {"migration_id": "text"}),
    ],
)
async def test_questions_that_no_peer_may_ask(method: str, params: dict[str, object]) -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        async with await link_as_a(pair) as link:
            await link.send(Query(method, params))
            with pytest.raises(OptmigError) as caught:
                await link.expect(QueryResult, timeout_s=5)
            assert caught.value.code == "remote-protocol"
        assert (await pair.b.client.status("e1"))["state"] == "running"


async def test_ping_and_outcome() -> None:
    async with two_sites() as pair:
        async with await link_as_a(pair) as link:
            await link.send(Query("ping", {}))
            result = (await link.expect(QueryResult, timeout_s=5)).result
            assert result["name"] == "b"
        async with await link_as_a(pair) as link:
            await link.send(Query("outcome", {"migration_id": os.urandom(16)}))
            assert (await link.expect(QueryResult, timeout_s=5)).result == {"state": "failed"}


async def test_abort_after_release_changes_nothing() -> None:
    """A destination that fails when it has the token cannot make the source resume."""
    async with two_sites() as pair:
        go = pair.directory / "go"
        source = {"hold_at": "ready", "hold_until": str(go)}
        await pair.launch(
            script=json.dumps({"source": source, "destination": {"ignore_tokens": 9}})
        )
        await pair.a.client.migrate("e1", "b", detach=True)
        held = pair.a.directory / "state/enclaves/e1@1/held"
        await eventually(held.exists, "the source's shim holds before the release")
        go.touch()
        await wait_released(pair.a)
        pair.b.end_agents()
        await trio.sleep(1)
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        output = (pair.a.directory / "state/enclaves/e1@1/output.log").read_text()
        assert output == "generation 1\n"
