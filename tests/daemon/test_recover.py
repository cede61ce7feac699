"""A migration whose other host is gone: what `recover` says and settles, and what `forget` removes.

No decision may make two owners: after each, the other host comes back, and at most one runs.
"""

import pytest
import trio

from optmigd.answers import Recovery
from optmigd.protocol.errors import (
    AlreadyMigrating,
    AlreadyReleased,
    EnclaveError,
    EnclaveExists,
    HandoffUncertain,
    MigrationError,
    Unconfirmed,
    UnknownEnclave,
)
from tests.daemon.test_handoff import (
    agents_alive,
    assert_only_on_a,
    assert_only_on_b,
    runs,
    start_and_stop_before_release,
    wait_status,
)
from tests.support.daemons import Pair, Site, eventually, two_sites, wait_released


def choices(answer: Recovery) -> list[str]:
    return [choice["choice"] for choice in answer["choices"]]


async def wait_here(site: Site, here: str) -> Recovery:
    """Wait until `recover` shows this standing of e1."""
    with trio.fail_after(20):
        while True:
            answer = await site.client.recover("e1")
            if answer["here"] == here:
                return answer
            await trio.sleep(0.02)
    raise AssertionError("the block above returns or raises")


async def release_into_nothing(pair: Pair) -> None:
    """Let a release the enclave to b, which waits for a token that never comes."""
    go = await start_and_stop_before_release(pair)
    pair.wire.freeze(to_target=True, from_target=True)
    go.touch()
    await wait_released(pair.a)
    pair.wire.cut(refuse=True)


async def test_before_the_release_recover_points_to_cancel() -> None:
    async with two_sites() as pair:
        await start_and_stop_before_release(pair)
        answer = await pair.a.client.recover("e1")
        assert (answer["role"], answer["peer"]) == ("source", "b")
        assert (answer["here"], answer["there"]) == ("not-released", None)
        assert choices(answer) == ["wait", "cancel"]
        assert answer["choices"][1]["command"] == "optmigctl cancel e1"
        with pytest.raises(MigrationError, match="'not-released'"):
            await pair.a.client.recover("e1", decision="give-up", confirmed=True)
        with pytest.raises(MigrationError, match="'not-released'"):
            await pair.a.client.recover("e1", decision="discard", confirmed=True)
        there = await pair.b.client.recover(answer["migration_id"])
        assert (there["role"], there["here"], choices(there)) == (
            "destination",
            "arriving",
            ["wait"],
        )
        with pytest.raises(MigrationError, match="'arriving'"):
            await pair.b.client.recover("e1", decision="discard", confirmed=True)
        assert (await pair.a.client.cancel("e1"))["state"] == "cancelled"
        await assert_only_on_a(pair)
        assert (await pair.a.client.recover("e1"))["here"] == "cancelled"


async def test_a_delivery_is_given_up_only_when_that_is_confirmed() -> None:
    async with two_sites() as pair:
        await release_into_nothing(pair)
        answer = await pair.a.client.recover("e1")
        assert (answer["here"], answer["there"]) == ("released", None)
        assert "host b cannot be asked" in answer["meaning"]
        assert choices(answer) == ["wait", "give-up"]
        with pytest.raises(Unconfirmed, match=r"never runs here again.*Nothing was done"):
            await pair.a.client.recover("e1", decision="give-up")
        with pytest.raises(MigrationError, match="'released'"):
            await pair.a.client.recover("e1", decision="discard", confirmed=True)
        with pytest.raises(AlreadyReleased, match="optmigctl recover e1"):
            await pair.a.client.stop("e1")
        with pytest.raises(AlreadyReleased, match="only token"):
            await pair.a.client.forget("e1")
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        # Nothing of all this was done: with the network back, it arrives.
        pair.wire.mend()
        await assert_only_on_b(pair)
        answer = await pair.a.client.recover(answer["migration_id"])
        assert (answer["here"], choices(answer)) == ("completed", [])


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_given_up_never_runs_at_the_source_again(restarted: bool) -> None:
    async with two_sites() as pair:
        await release_into_nothing(pair)
        answer = await pair.a.client.recover("e1", decision="give-up", confirmed=True)
        assert (answer["here"], answer["decision"]) == ("given-up", "give-up")
        await eventually(lambda: not agents_alive(pair.a), "the released agent has ended")
        if restarted:
            await pair.a.stop_as_if_killed()
            await pair.a.start()
        assert (await pair.a.client.status("e1"))["state"] == "lost"
        owner = await pair.a.client.owner("e1")
        assert (owner["owner"], owner["state"], owner["certain"]) == ("b", "lost", False)
        with pytest.raises(HandoffUncertain, match="given up"):
            await pair.a.client.wait("e1")
        with pytest.raises(EnclaveExists, match="lost"):
            await pair.launch()
        with pytest.raises(MigrationError):
            await pair.a.client.migrate("e1", "b")
        # b asks a, hears that no token will come, and destroys what waited.
        pair.wire.mend()
        await eventually(lambda: pair.b.instances == [], "b has destroyed what waited")
        assert runs(pair.b) == []
        assert runs(pair.a) == ["generation 1"]


async def test_what_was_given_up_and_runs_at_the_destination_is_found_there() -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=False, from_target=True)
        go.touch()
        await wait_status(pair.b, host="b", state="running")
        pair.wire.cut(refuse=True)
        await wait_released(pair.a)
        await pair.a.client.recover("e1", decision="give-up", confirmed=True)
        pair.wire.mend()
        owner = await pair.a.client.owner("e1")
        assert (owner["owner"], owner["state"], owner["certain"]) == ("b", "running", True)
        assert runs(pair.b) == ["generation 1", "generation 2"]
        # It may even come back: that is another generation.
        assert (await pair.b.client.migrate("e1", "a"))["owner_generation"] == 3
        assert (await pair.a.client.owner("e1"))["owner"] == "a"


async def test_what_waits_for_a_token_is_discarded_only_when_that_is_confirmed() -> None:
    async with two_sites() as pair:
        await release_into_nothing(pair)
        await pair.a.stop()
        answer = await wait_here(pair.b, "awaiting-token")
        assert (answer["role"], answer["peer"], answer["there"]) == ("destination", "a", None)
        assert "host a cannot be asked" in answer["meaning"]
        assert choices(answer) == ["wait", "discard"]
        with pytest.raises(Unconfirmed, match="if host a had released the enclave, it is lost"):
            await pair.b.client.recover("e1", decision="discard")
        with pytest.raises(AlreadyMigrating, match="on its way here"):
            await pair.b.client.forget("e1")
        assert pair.b.instances == ["e1@1"]
        answer = await pair.b.client.recover("e1", decision="discard", confirmed=True)
        assert (answer["here"], answer["decision"]) == ("failed", "discard")
        assert pair.b.instances == []
        assert agents_alive(pair.b) == []
        # a comes back with its token: nothing is left that it could start.
        pair.wire.mend()
        await pair.a.start()
        answer = await pair.a.client.recover("e1")
        assert (answer["here"], answer["there"]) == ("released", "failed")
        assert "the enclave is lost" in answer["meaning"]
        await pair.a.client.recover("e1", decision="give-up", confirmed=True)
        assert (await pair.a.client.status("e1"))["state"] == "lost"
        assert runs(pair.b) == []


async def test_discarding_what_was_not_released_costs_nothing() -> None:
    async with two_sites() as pair:
        await start_and_stop_before_release(pair)
        pair.wire.cut(refuse=True)
        # The source resumes at once; b cannot hear it while a is down.
        await pair.a.stop()
        await wait_here(pair.b, "awaiting-token")
        await pair.b.client.recover("e1", decision="discard", confirmed=True)
        assert pair.b.instances == []
        await pair.a.start()
        pair.wire.mend()
        await assert_only_on_a(pair)


async def test_both_sides_know_what_the_other_one_does() -> None:
    async with two_sites() as pair:
        await release_into_nothing(pair)
        answer = await wait_here(pair.b, "awaiting-token")
        assert answer["there"] == "released"
        assert "delivers the token again" in answer["meaning"]
        pair.wire.mend()
        await assert_only_on_b(pair)
        answer = await pair.b.client.recover("e1")
        assert (answer["here"], choices(answer)) == ("resumed", [])


async def test_nothing_is_known_of_a_migration_that_never_was() -> None:
    async with two_sites() as pair:
        await pair.launch()
        for what in ("e1", "0f" * 16, "nobody"):
            with pytest.raises(MigrationError, match="knows nothing"):
                await pair.a.client.recover(what)


async def test_forget_removes_an_enclave_that_has_ended() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        with pytest.raises(EnclaveError, match="optmigctl stop e1"):
            await pair.a.client.forget("e1")
        flag.write_text("0")
        await pair.a.client.wait("e1")
        assert await pair.a.client.forget("e1") == {
            "enclave": "e1",
            "state": "exited",
            "lost_way": None,
        }
        assert pair.a.instances == []
        with pytest.raises(UnknownEnclave):
            await pair.a.client.status("e1")
        await pair.a.stop()
        await pair.a.start()
        assert await pair.a.client.list_enclaves() == []
        flag.unlink()
        await pair.launch(ends_when=str(flag))


async def test_forgetting_what_has_moved_loses_the_way_but_not_the_receipt() -> None:
    async with two_sites() as pair:
        await pair.launch()
        moved = await pair.a.client.migrate("e1", "b")
        assert (await pair.a.client.forget("e1"))["lost_way"] == "b"
        assert pair.a.instances == []
        with pytest.raises(UnknownEnclave):
            await pair.a.client.owner("e1")
        receipt = await pair.a.client.receipt(moved["migration_id"])
        assert receipt["receipt"]["body"] == b"body of the source"
        # It can come back as if it had never been here.
        await pair.b.client.migrate("e1", "a")
        assert (await pair.a.client.owner("e1"))["owner_generation"] == 3
