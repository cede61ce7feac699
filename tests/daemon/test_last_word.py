"""A migration that came to nothing has one name on both hosts: what the source calls it.

The link carries nothing while an operator cancels at the source, so the destination sees only that
it has broken. `back` is what lies between the destination and the source when the former asks.
"""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import msgspec
import pytest
import trio

from optmigd.config import format_address
from optmigd.protocol.errors import MigrationFailed
from optmigd.protocol.link import DATA_PREAMBLE
from tests.support.daemons import Pair, Site, Wire, eventually, two_sites


@asynccontextmanager
async def sites_with_way_back() -> AsyncIterator[tuple[Pair, Wire]]:
    """Two sites whose ways to each other are broken and mended one by one."""
    async with two_sites() as pair, trio.open_nursery() as nursery:
        back = Wire()
        await nursery.start(back.serve)
        assert pair.a.daemon is not None
        back.target = pair.a.daemon.address
        await pair.b.client.host_remove("a")
        address = format_address(*back.address)
        await pair.b.client.host_add("a", address, pair.a.identity.key_text)
        yield pair, back
        nursery.cancel_scope.cancel()


async def stop(site: Site, how: str) -> None:
    await (site.stop() if how == "stopped" else site.stop_as_if_killed())


def ends(site: Site) -> list[tuple[str, str, str]]:
    """How the journal says that each migration ended, and the code of its error, oldest first."""
    with closing(
        sqlite3.connect(f"file:{site.directory}/state/journal.db?mode=ro", uri=True)
    ) as db:
        rows = db.execute("SELECT role, state, result FROM migrations ORDER BY started_s")
        return [
            (role, state, result.get("error", {}).get("code", ""))
            for role, state, packed in rows
            for result in [msgspec.msgpack.decode(packed)]
        ]


async def cancel_unheard(pair: Pair, back: Wire, hold_at: str, **script: object) -> str:
    """Begin a move, and cancel it while the destination hears nothing. Returns its id."""
    source = {"hold_at": hold_at, "hold_until": str(pair.directory / "go")}
    await pair.launch(script=json.dumps({"source": source, **script}))
    await pair.a.client.migrate("e1", "b", detach=True)
    held = pair.a.directory / "state/enclaves/e1@1/held"
    await eventually(held.exists, "the source's shim holds")
    pair.wire.freeze(to_target=True, from_target=True)
    back.cut(refuse=True)
    cancelled = await pair.a.client.cancel("e1")
    assert cancelled["state"] == "cancelled"
    assert ends(pair.a) == [("source", "cancelled", "cancelled")]
    pair.wire.cut(refuse=True)
    return str(cancelled["migration_id"])


async def ends_alike(pair: Pair) -> None:
    await eventually(
        lambda: ends(pair.b) == [("destination", "cancelled", "cancelled")],
        "the destination's journal says what the source's says",
    )
    assert ends(pair.a) == [("source", "cancelled", "cancelled")]
    await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")


@pytest.mark.parametrize("how", ["", "stopped", "killed"])
async def test_a_cancel_in_a_round_is_learnt_when_both_can_talk_again(how: str) -> None:
    """What had arrived goes at once; how it ended is asked for until it is known."""
    async with sites_with_way_back() as (pair, back):
        migration_id = await cancel_unheard(pair, back, "active")
        await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")
        assert [state for _, state, _ in ends(pair.b)] == ["unsettled"]
        if how:
            await stop(pair.b, how)
            await pair.b.start()
        known = await pair.b.client.recover(migration_id)
        assert (known["here"], known["choices"]) == ("failed", [])
        back.mend()
        await ends_alike(pair)
        known = await pair.b.client.recover(migration_id)
        assert known["here"] == "cancelled"


@pytest.mark.parametrize("how", ["", "stopped", "killed"])
async def test_a_destination_whose_streams_never_came_keeps_nothing(how: str) -> None:
    """Its source is out of reach: nobody but its own daemon can tell it that there is no hope."""

    async def has_answered() -> bool:
        migration = (await pair.b.client.status("e1"))["migration"]
        return migration is not None and migration["state"] == "active"

    async with sites_with_way_back() as (pair, back):
        pair.wire.keeps_streams_back = True
        await pair.launch()
        await pair.a.client.migrate("e1", "b", detach=True)
        await eventually(
            lambda: any(one.startswith(DATA_PREAMBLE) for one in pair.wire.first_bytes),
            "a data stream is on its way",
        )
        with trio.fail_after(40):
            while not await has_answered():  # noqa: ASYNC110
                await trio.sleep(0.01)
        if how:
            await stop(pair.b, how)
        back.cut(refuse=True)
        pair.wire.cut(refuse=True)
        if how:
            await pair.b.start()
        await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")
        assert [state for _, state, _ in ends(pair.b)] == ["unsettled"]
        assert (await pair.a.client.status("e1"))["state"] == "running"


@pytest.mark.parametrize("how", ["", "stopped", "killed", "agent of an earlier release"])
async def test_a_cancel_after_ready_is_learnt_by_the_instance_that_waits(how: str) -> None:
    async with sites_with_way_back() as (pair, back):
        unknown = ["link_lost"] if how.startswith("agent") else []
        await cancel_unheard(pair, back, "ready", unknown=unknown)
        if how in ("stopped", "killed"):
            await stop(pair.b, how)
            await pair.b.start()
        assert pair.b.instances == ["e1@1"]
        back.mend()
        await ends_alike(pair)


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_enclave_comes_again_before_the_last_word_is_known(restarted: bool) -> None:
    """Its instance has the number of the one that was destroyed; a new daemon tells them apart."""
    async with sites_with_way_back() as (pair, back):
        first = await cancel_unheard(pair, back, "active")
        await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")
        pair.wire.mend()
        (pair.directory / "go").touch()
        assert (await pair.a.client.migrate("e1", "b"))["state"] == "completed"
        await eventually(
            lambda: [state for _, state, _ in ends(pair.b)] == ["unsettled", "completed"],
            "the second is over, the first is not",
        )
        if restarted:
            await pair.b.stop_as_if_killed()
            await pair.b.start()
        assert (await pair.b.client.recover(first))["here"] == "failed"
        back.mend()
        await eventually(
            lambda: [state for _, state, _ in ends(pair.b)] == ["cancelled", "completed"],
            "the destination has learnt the end of the first",
        )
        assert [state for _, state, _ in ends(pair.a)] == ["cancelled", "completed"]
        assert (await pair.b.client.status("e1"))["state"] == "running"


async def test_a_destination_that_fails_by_itself_is_told_the_same_end() -> None:
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"destination": {"fail_at": "active"}}))
        with pytest.raises(MigrationFailed):
            await pair.a.client.migrate("e1", "b")
        await eventually(lambda: [end[1] for end in ends(pair.b)] == ["failed"], "b has been told")
        assert [end[1] for end in ends(pair.a)] == ["failed"]
