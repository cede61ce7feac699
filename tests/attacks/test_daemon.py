"""A hostile daemon changes what it relays between two honest shims: payloads, records, stories.

Both shims are real agents and the enclave is a real program; the test is both daemons. So whatever
is refused here is refused by the shims.
"""

import os
from collections.abc import AsyncIterator, Callable

import pytest

from optmigd.protocol.record_format import HEADER, HEADER_BYTES, Kind
from tests.attacks.hostile import Recording, Victim, flipped
from tests.conftest import BuildProgram
from tests.support.agents import Message

OTHER = b"\x55" * 32
ATTACKS_BETWEEN_MOVES = 8
NOT_OPENED = ("decrypt-failed", "handshake-failed")


@pytest.fixture(autouse=True)
async def honest_retry(victim: Victim) -> AsyncIterator[None]:
    """After every few attacks an honest daemon moves the enclave, with both memories compared."""
    before = victim.attacks
    yield
    if victim.attacks // ATTACKS_BETWEEN_MOVES > before // ATTACKS_BETWEEN_MOVES:
        await victim.move_honestly()


# ---- the attested session ----

Change = Callable[[bytes, list[bytes]], list[bytes]]
"""Gets a payload and what went the other way so far; returns what is delivered."""

CHANGES: dict[str, Change] = {
    "flip-first": lambda payload, other: [flipped(payload, 0)],
    "flip-last": lambda payload, other: [flipped(payload, -1)],
    "truncate": lambda payload, other: [payload[:-1]],
    "extend": lambda payload, other: [payload + b"\0"],
    "empty": lambda payload, other: [b""],
    "invent": lambda payload, other: [os.urandom(len(payload)), payload],
    "oversize": lambda payload, other: [payload + bytes(60_001)],
    "reflect": lambda payload, other: [other[-1]],
}
PLACES = {
    "second-handshake-message": ("at_source", 0),
    "third-handshake-message": ("at_destination", 1),
    "proposal": ("at_destination", 2),
    "answer": ("at_source", 1),
}


CASES = [("proposal", change) for change in CHANGES] + [
    (place, change)
    for place in ("second-handshake-message", "third-handshake-message", "answer")
    for change in ("flip-last", "reflect")
]


@pytest.mark.parametrize(("place", "change"), CASES)
async def test_a_payload_is_changed(victim: Victim, place: str, change: str) -> None:
    direction, number = PLACES[place]
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination)
        log = move.recorded
        other = log.to_destination if direction == "at_source" else log.to_source

        def tamper(found: int, payload: bytes) -> list[bytes]:
            return CHANGES[change](payload, other) if found == number else [payload]

        setattr(move, direction, tamper)
        await victim.fails(move, *NOT_OPENED, "remote-protocol")


@pytest.mark.parametrize("place", ["third-handshake-message", "answer"])
async def test_a_payload_is_repeated(victim: Victim, place: str) -> None:
    direction, number = PLACES[place]
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination)
        setattr(move, direction, lambda n, p: [p, p] if n == number else [p])
        await victim.fails(move, "decrypt-failed")


async def test_payloads_change_places(victim: Victim) -> None:
    held: list[bytes] = []

    def swap(number: int, payload: bytes) -> list[bytes]:
        if number == 1:
            held.append(payload)
            return []
        return [payload, *held] if number == 2 else [payload]

    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, at_destination=swap)
        await victim.fails(move, "handshake-failed")


@pytest.mark.parametrize("direction", ["at_destination", "at_source"])
async def test_a_dropped_payload_ends_in_time(victim: Victim, direction: str) -> None:
    async with victim.hosts() as (source, destination):
        export = {"timeout_s": 1.5}
        move = victim.hostile(source, destination, export=export)
        setattr(move, direction, lambda n, p: [] if n == 1 else [p])
        await victim.fails(move, "timeout", "decrypt-failed", "handshake-failed")


@pytest.mark.parametrize(
    ("direction", "number"),
    [("at_destination", 0), ("at_destination", 2), ("at_source", 0), ("at_source", 1)],
)
async def test_a_payload_of_an_earlier_migration_of_the_same_number(
    victim: Victim, direction: str, number: int
) -> None:
    """The daemons run a migration again under its old number, and play in what they recorded."""
    old = victim.recording
    earlier = old.to_destination if direction == "at_destination" else old.to_source
    async with victim.hosts() as (source, destination):
        move = victim.hostile(
            source,
            destination,
            migration_id=old.migration_id,
            export={"mode": "stop-and-copy"},
        )
        setattr(move, direction, lambda n, p: [earlier[n]] if n == number else [p])
        await victim.fails(move, *NOT_OPENED)


LAST_WORDS: dict[str, Callable[[bytes, Recording, Recording], list[bytes]]] = {
    "flip": lambda payload, old, now: [flipped(payload, 20)],
    "cut": lambda payload, old, now: [payload[:-1]],
    "empty": lambda payload, old, now: [b""],
    "earlier manifest": lambda payload, old, now: [old.manifest],
    "earlier READY": lambda payload, old, now: [old.ready],
    "manifest, cut and whole": lambda payload, old, now: [now.manifest[:-1], now.manifest],
    "token": lambda payload, old, now: [old.token],
}
"""What is sent in the place of the manifest or of READY; the earlier move had the same number."""


@pytest.mark.parametrize("change", LAST_WORDS)
@pytest.mark.parametrize("place", ["at_manifest", "at_ready"])
async def test_the_last_words_before_release_are_changed(
    victim: Victim, place: str, change: str
) -> None:
    """The program is parked while it happens: it must run on afterwards."""
    old = victim.recording
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, migration_id=old.migration_id)
        setattr(move, place, lambda p: LAST_WORDS[change](p, old, move.recorded))
        await victim.fails(move, "decrypt-failed")


@pytest.mark.parametrize("place", ["at_manifest", "at_ready"])
async def test_the_last_words_before_release_are_kept_back(victim: Victim, place: str) -> None:
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, export={"switchover_stall_s": 1.0})
        setattr(move, place, lambda payload: [])
        await victim.fails(move, "timeout")


async def test_ready_is_said_before_the_destination_says_it(victim: Victim) -> None:
    """Whatever lies in the stream's way back is taken for READY, and must not open."""
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination)

        def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
            if (stream, number) == (0, 0):
                move.say_to_source(victim.recording.ready)
            return [record]

        move.at_records = tamper
        await victim.fails(move, "decrypt-failed")


@pytest.mark.parametrize("to_whom", ["to the source", "to the destination"])
async def test_a_flood_of_payloads(victim: Victim, to_whom: str) -> None:
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination)
        flood = lambda n, p: [p, *[bytes(64)] * 400]  # noqa: E731
        if to_whom == "to the source":
            move.at_source = flood
        else:
            move.at_destination = flood
        await victim.fails(move, *NOT_OPENED, "remote-protocol")


# ---- different stories ----

STORIES: dict[str, tuple[Message, tuple[str, ...]]] = {
    "source-host": ({"source_host": OTHER}, ("handshake-failed",)),
    "policy": ({"policy": b"debug = true"}, ("handshake-failed",)),
    "generation-before": ({"generation": 1}, ("remote-protocol",)),
    "memory": ({"memory_bytes": 64 << 20}, ("remote-protocol",)),
    "streams": ({"streams": 3}, ("remote-protocol",)),
    "directory": ({"own_dir": "/etc"}, ("remote-protocol",)),
}


@pytest.mark.parametrize("story", STORIES)
async def test_the_shims_are_told_different_things(victim: Victim, story: str) -> None:
    told, codes = STORIES[story]
    async with victim.hosts() as (source, destination):
        await victim.fails(victim.hostile(source, destination, receive=told), *codes)


async def test_the_shims_are_told_different_migrations(victim: Victim) -> None:
    """The daemons translate between two numbers, so each shim sees only its own."""
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination)
        destination.known_as[move.migration_id] = OTHER[:16]
        await victim.fails(move, "handshake-failed")


async def test_another_image(victim: Victim, program: BuildProgram) -> None:
    """The destination's daemon starts another program than the one that moves."""
    other = program("integers").image
    async with victim.hosts() as (source, destination):
        told = {"image": str(other)}
        await victim.fails(victim.hostile(source, destination, receive=told), "attestation-failed")


# ---- records ----


def _kind(record: bytes) -> Kind:
    return Kind(HEADER.unpack(record[:HEADER_BYTES])[1])


HEADER_FIELDS = (
    *("magic", "kind", "reserved1", "stream", "reserved2", "round_no", "sequence"),
    *("meta", "body", "reserved3"),
)


def _with_header(record: bytes, **changed: int) -> bytes:
    fields = dict(zip(HEADER_FIELDS, HEADER.unpack(record[:HEADER_BYTES]), strict=True)) | changed
    return HEADER.pack(*fields.values()) + record[HEADER_BYTES:]


RecordChange = Callable[[bytes], "list[bytes] | None"]
RECORD_CHANGES: dict[str, RecordChange] = {
    "meta-flip": lambda r: [flipped(r, HEADER_BYTES)],
    "tag-flip": lambda r: [flipped(r, -1)],
    "repeat": lambda r: [r, r],
    "drop": lambda r: [],
    "halved": lambda r: [r[: len(r) // 2], bytes(4096)],
    "cut-inside": lambda r: [r[:-5]],  # and the stream ends before the next record
    "cut-before": lambda r: None,
    "next-round": lambda r: [_with_header(r, round_no=1)],
    "other-stream": lambda r: [_with_header(r, stream=1)],
    "as-zeros": lambda r: [_with_header(r, kind=Kind.ZERO, body=0)],
    "huge": lambda r: [_with_header(r, body=2**32 - 1)],
}
RECORD_CODES = ("decrypt-failed", "remote-protocol", "channel-closed")


@pytest.mark.parametrize("change", RECORD_CHANGES)
async def test_a_record_is_changed(victim: Victim, change: str) -> None:
    def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
        if (stream, number) != (0, 1):
            cut = change == "cut-inside" and (stream, number) == (0, 2)
            return None if cut else [record]
        return RECORD_CHANGES[change](record)

    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, at_records=tamper)
        await victim.fails(move, *RECORD_CODES)


@pytest.mark.parametrize("change", ["flip", "drop", "cut"])
async def test_the_end_of_a_round_is_changed(victim: Victim, change: str) -> None:
    """The program is parked while it happens: it must run on afterwards."""
    changes: dict[str, RecordChange] = {
        "flip": lambda r: [flipped(r, HEADER_BYTES + 3)],
        "drop": lambda r: [],
        "cut": lambda r: None,
    }

    def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
        return changes[change](record) if _kind(record) is Kind.END_OF_ROUND else [record]

    async with victim.hosts() as (source, destination):
        export = {"mode": "stop-and-copy", "timeout_s": 2.0}
        move = victim.hostile(source, destination, at_records=tamper, export=export)
        await victim.fails(move, *RECORD_CODES, "timeout")


async def test_the_end_of_a_round_is_repeated(victim: Victim) -> None:
    """On one stream; the other's end is kept back, so the round is not over before that."""

    def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
        if _kind(record) is not Kind.END_OF_ROUND:
            return [record]
        return [record, record] if stream == 0 else []

    async with victim.hosts() as (source, destination):
        export = {"mode": "stop-and-copy", "timeout_s": 20.0}
        move = victim.hostile(source, destination, at_records=tamper, export=export)
        await victim.fails(move, *RECORD_CODES)


async def test_the_end_of_the_last_round_is_repeated(victim: Victim) -> None:
    """If it is noticed in time the program runs on; if everything is here before, it is nothing.

    Which of the two is up to the scheduler.
    """

    def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
        return [record, record] if _kind(record) is Kind.END_OF_ROUND else [record]

    async with victim.hosts() as (source, destination):
        export = {"mode": "stop-and-copy", "timeout_s": 2.0, "verify": True}
        move = victim.hostile(source, destination, at_records=tamper, export=export)
        here, there = await move.assault()
        completed = here["outcome"] == "completed"
        if completed:
            assert (there["outcome"], here["report"]["verified"]) == ("completed", True)
            assert await destination.runs()
        else:
            assert {side["error"]["code"] for side in (here, there)} & set(RECORD_CODES)
            await victim.stands_unharmed(source, destination)
    if completed:
        victim.moved_to(destination)
    victim.attacks += 1


async def test_neighbouring_records_change_places(victim: Victim) -> None:
    held: list[bytes] = []

    def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
        if (stream, number) == (0, 0):
            held.append(record)
            return []
        return [record, *held] if (stream, number) == (0, 1) else [record]

    async with victim.hosts() as (source, destination):
        await victim.fails(victim.hostile(source, destination, at_records=tamper), "decrypt-failed")


async def test_the_streams_are_crossed(victim: Victim) -> None:
    async with victim.hosts() as (source, destination):
        await victim.fails(victim.hostile(source, destination, crossed=True), "decrypt-failed")


async def test_a_record_of_another_stream_under_this_ones_number(victim: Victim) -> None:
    seen: dict[tuple[int, int], bytes] = {}

    def tamper(stream: int, number: int, record: bytes) -> list[bytes] | None:
        seen[stream, number] = record
        if stream == 1 and number == 1 and (0, 1) in seen:
            return [_with_header(seen[0, 1], stream=1)]
        if stream == 1 and number == 1:
            return [_with_header(record, stream=1, round_no=1)]
        return [record]

    async with victim.hosts() as (source, destination):
        await victim.fails(victim.hostile(source, destination, at_records=tamper), "decrypt-failed")


@pytest.mark.parametrize("number", [0, 1])
async def test_a_record_of_an_earlier_migration_of_the_same_number(
    victim: Victim, number: int
) -> None:
    old = victim.recording

    def tamper(stream: int, found: int, record: bytes) -> list[bytes] | None:
        return [old.records[stream][found]] if found == number else [record]

    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, migration_id=old.migration_id, at_records=tamper)
        await victim.fails(move, "decrypt-failed")


async def test_a_whole_recorded_migration_is_played_to_a_second_destination(
    victim: Victim,
) -> None:
    """The host has kept every byte of a move, and gives all of it to a fresh instance."""
    old = victim.recording
    async with victim.hosts(2) as (_, destination):
        order = victim.hostile(
            destination, destination, migration_id=old.migration_id, generation=1
        )
        await order.order_receive()
        for payload in old.to_destination:
            await destination.notify("session", migration_id=old.migration_id, payload=payload)
        for _ in range(2):
            await destination.notify(
                "token_delivered", migration_id=old.migration_id, payload=old.token
            )
        ended = await destination.wait_event("ended")
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "handshake-failed")
        status = await destination.request("status")
        assert (status["state"], status["resident_bytes"]) == ("booting", 0)
