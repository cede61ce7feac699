"""Who may run an enclave: the answer of every host that ever held it, and how sure it is."""

import datetime
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from optmigd.config import format_address
from optmigd.protocol.errors import UnknownEnclave
from tests.daemon.test_handoff import start_and_stop_before_release, wait_status
from tests.support.daemons import Pair, Site, eventually, two_sites, wait_released


@asynccontextmanager
async def third_site(pair: Pair) -> AsyncIterator[Site]:
    """A host c that knows b and is known by b; a and c have never heard of each other."""
    (pair.directory / "c").mkdir()
    c = Site("c", pair.directory / "c", pair.a.nursery)
    try:
        await c.start()
        assert c.daemon is not None and pair.b.daemon is not None
        await c.client.host_add(
            "b", format_address(*pair.b.daemon.address), pair.b.identity.key_text
        )
        await pair.b.client.host_add("c", format_address(*c.daemon.address), c.identity.key_text)
        yield c
    finally:
        c.end_agents()


async def test_an_enclave_that_never_moved_is_its_hosts_since_the_launch() -> None:
    async with two_sites() as pair:
        before_s = time.time()
        await pair.launch()
        answer = dict(await pair.a.client.owner("e1"))
        since_s = answer.pop("since_s")
        assert isinstance(since_s, float)
        assert before_s <= since_s <= time.time()
        since = datetime.datetime.fromisoformat(str(answer.pop("since")))
        assert abs(since.timestamp() - before_s) < 60
        assert answer == {
            "enclave": "e1",
            "owner": "a",
            "owner_key": pair.a.identity.key_text,
            "state": "running",
            "owner_generation": 1,
            "migration_id": None,
            "certain": True,
            "according_to": "a",
            "asked": [],
            "unreachable": [],
        }
        with pytest.raises(UnknownEnclave):
            await pair.b.client.owner("e1")


async def test_every_host_names_the_last_one_also_after_restarts() -> None:
    async with two_sites() as pair:
        await pair.launch()
        for generation, (site, to) in enumerate(((pair.a, "b"), (pair.b, "a"), (pair.a, "b")), 2):
            moved = await site.client.migrate("e1", to)
            answers = [await each.client.owner("e1") for each in (pair.a, pair.b)]
            for answer in answers:
                assert (answer["owner"], answer["state"]) == (to, "running")
                assert answer["owner_generation"] == generation
                assert answer["migration_id"] == moved["migration_id"]
                assert answer["certain"] is True
                assert answer["according_to"] == to
            assert answers[0]["since_s"] == answers[1]["since_s"]
        asked_a = await pair.a.client.owner("e1")
        assert asked_a["asked"] == ["b"]
        for site in (pair.a, pair.b):
            await site.stop()
            await site.start()
        assert await pair.a.client.owner("e1") == asked_a


async def test_the_question_goes_along_hosts_that_do_not_know_each_other() -> None:
    async with two_sites() as pair, third_site(pair) as c:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        await pair.b.client.migrate("e1", "c")
        answer = await pair.a.client.owner("e1")
        assert (answer["owner"], answer["owner_generation"]) == ("c", 3)
        assert answer["owner_key"] == c.identity.key_text
        assert answer["asked"] == ["b", "c"]
        assert answer["certain"] is True
        await c.stop()
        answer = await pair.a.client.owner("e1")
        assert (answer["owner"], answer["state"], answer["certain"]) == ("c", "moved", False)
        assert (answer["asked"], answer["unreachable"]) == (["b"], ["c"])
        assert (answer["owner_generation"], answer["according_to"]) == (3, "b")
        await pair.b.stop()
        answer = await pair.a.client.owner("e1")
        assert (answer["owner"], answer["owner_generation"]) == ("b", 2)
        assert (answer["asked"], answer["unreachable"]) == ([], ["b"])
        assert answer["certain"] is False
        await pair.a.client.host_remove("b")
        answer = await pair.a.client.owner("e1")
        assert answer["owner"] == pair.b.identity.key_text
        assert answer["unreachable"] == [pair.b.identity.key_text]


async def test_an_enclave_that_has_ended_is_its_last_hosts() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        await pair.a.client.migrate("e1", "b")
        flag.write_text("4")
        await pair.a.client.wait("e1")
        answer = await pair.a.client.owner("e1")
        assert (answer["owner"], answer["state"], answer["certain"]) == ("b", "exited", True)


async def test_a_migration_under_way_leaves_the_source_the_owner() -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        for site in (pair.a, pair.b):
            answer = await site.client.owner("e1")
            assert (answer["owner"], answer["state"], answer["certain"]) == ("a", "running", True)
            assert answer["owner_generation"] == 1
        pair.wire.freeze(to_target=False, from_target=False)
        go.touch()
        await wait_status(pair.b, host="b", state="running")


async def test_released_and_unconfirmed_is_said_as_it_is() -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=True, from_target=True)
        go.touch()
        await wait_released(pair.a)
        pair.wire.cut(refuse=True)
        answer = await pair.a.client.owner("e1")
        status = await pair.a.client.status("e1")
        assert status["migration"] is not None
        assert (answer["owner"], answer["state"], answer["certain"]) == ("b", "released", False)
        assert answer["owner_generation"] == 2
        assert answer["migration_id"] == status["migration"]["migration_id"]
        assert answer["unreachable"] == ["b"]
        assert abs((answer["since_s"] or 0) - time.time()) < 60
        # b waits for the token: a, which it can ask, has let go.
        answer = await pair.b.client.owner("e1")
        assert (answer["owner"], answer["state"], answer["certain"]) == ("b", "released", False)
        assert (answer["according_to"], answer["asked"]) == ("a", ["a"])
        # Without a, b knows only where it came from.
        await pair.a.stop()
        answer = await pair.b.client.owner("e1")
        assert (answer["owner"], answer["state"], answer["certain"]) == ("a", "incoming", False)
        assert answer["unreachable"] == ["a"]
        pair.wire.mend()
        await pair.a.start()
        await wait_status(pair.b, host="b", state="running")
        await eventually(lambda: pair.a.instances != [], "a is back")
        answer = await pair.b.client.owner("e1")
        assert (answer["owner"], answer["state"], answer["certain"]) == ("b", "running", True)


async def test_a_confirmation_that_is_lost_does_not_hide_the_new_owner() -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=False, from_target=True)
        go.touch()
        await wait_status(pair.b, host="b", state="running")
        pair.wire.cut(refuse=True)
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        assert (await pair.a.client.owner("e1"))["certain"] is False
        pair.wire.mend()
        answer = await pair.a.client.owner("e1")
        assert (answer["state"], answer["certain"]) == ("running", True)
        assert (answer["owner"], answer["owner_generation"]) == ("b", 2)


async def test_an_owner_that_forgot_the_enclave_leaves_it_uncertain() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        await pair.a.client.migrate("e1", "b")
        flag.write_text("0")
        await pair.a.client.wait("e1")
        await pair.b.client.forget("e1")
        answer = await pair.a.client.owner("e1")
        assert (answer["owner"], answer["state"], answer["certain"]) == ("b", "moved", False)
        assert (answer["asked"], answer["unreachable"]) == (["b"], [])
