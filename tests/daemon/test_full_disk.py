"""A full disk: nothing is begun that cannot be journaled, and nothing that has happened is lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from optmigd.daemon.journal import Journal
from optmigd.protocol.errors import JournalFailed, MigrationFailed
from tests.daemon.test_handoff import (
    assert_only_on_a,
    assert_only_on_b,
    runs,
    start_and_stop_before_release,
    wait_status,
)
from tests.support.daemons import Pair, Site, eventually, two_sites
from tests.support.full_disk import fills_up


class Disks:
    """Which hosts' disks are full at this moment."""

    def __init__(self) -> None:
        self.full: set[Path] = set()
        self.refused = 0

    def fill(self, site: Site) -> None:
        self.full.add(site.directory)

    def make_room(self, site: Site) -> None:
        self.full.remove(site.directory)

    def is_full(self, journal: Path) -> bool:
        found = any(directory in journal.parents for directory in self.full)
        self.refused += found
        return found


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    """Disks that fill up when a test says so."""
    found = Disks()
    monkeypatch.setattr(Journal, "_write", fills_up(found.is_full))
    yield found
    assert found.refused, "no write met a full disk: the test has shown nothing"


async def test_a_launch_is_refused(disks: Disks) -> None:
    async with two_sites() as pair:
        disks.fill(pair.a)
        with pytest.raises(JournalFailed, match="database or disk is full"):
            await pair.launch()
        assert await pair.a.client.list_enclaves() == []
        disks.make_room(pair.a)
        await pair.launch()
        await wait_status(pair.a, state="running")


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_migration_is_not_begun(disks: Disks, where: str) -> None:
    async with two_sites() as pair:
        await pair.launch()
        site = pair.a if where == "a" else pair.b
        disks.fill(site)
        with pytest.raises(MigrationFailed, match="runs on here") as caught:
            await pair.a.client.migrate("e1", "b")
        assert caught.value.fields["cause"] == "journal"
        await wait_status(pair.a, host="a", state="running")
        disks.make_room(site)
        await assert_only_on_a(pair)
        await pair.a.client.migrate("e1", "b")
        await assert_only_on_b(pair)


@pytest.mark.parametrize("listens_on", ["link", "stream"])
async def test_a_token_waits_until_it_is_journaled(disks: Disks, listens_on: str) -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair, listens_on=listens_on)
        disks.fill(pair.a)
        go.touch()
        await eventually(lambda: disks.refused >= 3, "the daemon tries again and again")
        # It was released: nothing may run, on either host, before the token is on disk.
        assert runs(pair.b) == []
        status = await pair.a.client.status("e1")
        assert (status["state"], status["host"]) == ("migrating", "a")
        disks.make_room(pair.a)
        await assert_only_on_b(pair)


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_arrival_is_confirmed_when_it_is_journaled(disks: Disks, restarted: bool) -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        disks.fill(pair.b)
        go.touch()
        await eventually(lambda: disks.refused >= 3, "the daemon tries again and again")
        await eventually(lambda: runs(pair.b) != [], "the program runs on b")
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        if restarted:
            await pair.b.stop_as_if_killed()
            await pair.b.start()
        disks.make_room(pair.b)
        await assert_only_on_b(pair)


async def test_a_departure_is_completed_when_it_is_journaled(disks: Disks) -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=False, from_target=True)
        go.touch()
        await wait_status(pair.b, host="b", state="running")
        disks.fill(pair.a)
        pair.wire.cut()
        await eventually(lambda: disks.refused >= 3, "the daemon tries again and again")
        await pair.a.stop_as_if_killed()
        await pair.a.start()
        disks.make_room(pair.a)
        await assert_only_on_b(pair)


async def test_the_end_of_a_program_is_told_and_journaled_later(disks: Disks) -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        disks.fill(pair.a)
        flag.write_text("1")
        assert (await pair.a.client.wait("e1"))["exit_status"] == 1
        await eventually(lambda: disks.refused >= 2, "the daemon tries again")
        disks.make_room(pair.a)
        await trio.sleep(0.5)  # longer than the first pauses between two tries
        await pair.a.stop()
        await pair.a.start()
        status = await pair.a.client.status("e1")
        assert (status["state"], status["exit_status"]) == ("exited", 1)


async def test_a_failed_migration_is_told_at_once_and_journaled_later(disks: Disks) -> None:
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"source": {"hold_at": "active"}}))
        await pair.a.client.migrate("e1", "b", detach=True)
        await eventually(lambda: pair.b.instances != [], "b receives")
        disks.fill(pair.a)
        await pair.a.client.cancel("e1")
        assert (await pair.a.client.status("e1"))["state"] == "running"
        await _restart(pair)
        await wait_status(pair.a, host="a", state="running")
        disks.make_room(pair.a)
        await assert_only_on_a(pair)


async def _restart(pair: Pair) -> None:
    await pair.a.stop()
    await pair.a.start()


async def test_a_link_that_breaks_meanwhile_does_not_end_a_running_enclave(disks: Disks) -> None:
    """What the agent has said is not forgotten with the conversation in which it said it."""
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        disks.fill(pair.b)
        go.touch()
        await eventually(lambda: disks.refused >= 2, "the daemon tries again and again")
        pair.wire.cut(refuse=True)
        refused = disks.refused
        await eventually(lambda: disks.refused >= refused + 2, "it still tries")
        disks.make_room(pair.b)
        await wait_status(pair.b, host="b", state="running")
        pair.wire.mend()
        await assert_only_on_b(pair)
