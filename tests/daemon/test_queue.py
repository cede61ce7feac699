"""Many migrations at once: slots, the queue, turns, shares and changes under way, with two daemons.

The agents are the fake ones: what they hold up is held up for certain.
"""

# It asks for what no event announces.
# ruff: noqa: ASYNC110

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from optmigd.client import Client
from optmigd.config import format_address
from optmigd.protocol.errors import (
    AlreadyReleased,
    MigrationBlocked,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    MigrationTimeout,
    RemoteProtocolError,
    UnknownHost,
)
from tests.support.daemons import Pair, Site, two_sites, wait_released

Summary = dict[str, Any]


async def summary(site: Site, enclave: str) -> Summary:
    """The migration of an enclave, as `status` shows it."""
    return dict((await site.client.status(enclave))["migration"] or {})


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it is so."""
    with trio.fail_after(30):
        while not await holds():
            await trio.sleep(0.02)


async def wait_for_place(site: Site, enclave: str, position: int | None) -> Summary:
    """Wait until a migration stands at a place of the queue (None: in none), and return it."""

    async def there() -> bool:
        queue = (await summary(site, enclave)).get("queue")
        return (queue and queue["position"]) == position

    await until(there)
    return await summary(site, enclave)


async def wait_for_state(site: Site, enclave: str, state: str) -> None:
    async def there() -> bool:
        return (await summary(site, enclave)).get("state") == state

    await until(there)


def holding(pair: Pair, state: str = "active", **more: Any) -> str:
    """A script whose source waits in a state until the file `go` is there."""
    source = {"hold_at": state, "hold_until": str(pair.directory / "go"), **more}
    return json.dumps({"source": source})


def let_go(pair: Pair) -> None:
    (pair.directory / "go").touch()


def leave(go: Path) -> None:
    go.touch()


async def migrate(client: Client, enclave: str, host: str, outcomes: dict[str, Any]) -> None:
    try:
        outcomes[enclave] = (await client.migrate(enclave, host))["state"]
    except Exception as error:
        outcomes[enclave] = error


@asynccontextmanager
async def one_slot(
    enclaves: int = 3, script: str | None = None, **overrides: object
) -> AsyncIterator[Pair]:
    """Two hosts with one slot each, and enclaves e1, e2, … on a; e1 holds the slot."""
    async with two_sites(**{"limits.max_outgoing": 1, **overrides}) as pair:
        for number in range(1, enclaves + 1):
            await pair.launch(
                f"e{number}",
                script=holding(pair) if number == 1 else script or "",
                ends_when=str(pair.directory / f"end-e{number}"),
            )
        await pair.a.client.migrate("e1", "b", detach=True)
        await wait_for_state(pair.a, "e1", "active")
        yield pair


async def test_who_is_queued_says_so_everywhere_and_moves_in_order() -> None:
    async with one_slot() as pair, trio.open_nursery() as nursery:
        seen: list[tuple[str, int]] = []
        order: list[str] = []

        async def watch() -> None:
            async with pair.a.client.watch() as events:
                async for event in events:
                    if "queue" in event:
                        seen.append((event["enclave"], event["queue"]["position"]))
                    if event.get("state") == "completed":
                        order.append(event["enclave"])
                        if len(order) == 3:
                            return

        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await pair.a.client.migrate("e2", "b", detach=True)
        await pair.a.client.migrate("e3", "b", detach=True)
        third = await wait_for_place(pair.a, "e3", 2)
        assert (third["state"], third["queue"]["waits_for"]) == ("setup", "a")
        listed = {one["enclave"]: one for one in await pair.a.client.list_enclaves()}
        assert listed["e2"]["state"] == "migrating"
        assert (listed["e2"]["migration"] or {})["queue"]["position"] == 1
        assert pair.b.instances == ["e1@1"]
        let_go(pair)
        with trio.fail_after(30):
            while len(order) < 3:
                await trio.sleep(0.02)
        assert order == ["e1", "e2", "e3"]
        assert seen == [("e2", 1), ("e3", 2), ("e2", 0), ("e3", 1), ("e3", 0)]
        assert (await summary(pair.a, "e3"))["queue"] is None


async def test_a_queued_migration_can_be_cancelled_and_times_out() -> None:
    async with one_slot() as pair, trio.open_nursery() as nursery:
        outcomes: dict[str, Any] = {}
        nursery.start_soon(migrate, pair.a.client, "e2", "b", outcomes)
        await wait_for_place(pair.a, "e2", 1)
        with pytest.raises(MigrationTimeout):
            await pair.a.client.migrate("e3", "b", timeout_s=0.2)
        assert (await pair.a.client.cancel("e2"))["state"] == "cancelled"
        await until(lambda: _has(outcomes, "e2"))
        assert isinstance(outcomes["e2"], MigrationCancelled)
        for enclave in ("e2", "e3"):
            status = await pair.a.client.status(enclave)
            assert (status["state"], status["owner_generation"]) == ("running", 1)
        let_go(pair)
        assert (await pair.a.client.migrate("e2", "b"))["state"] == "completed"


async def _has(outcomes: dict[str, Any], enclave: str) -> bool:
    return enclave in outcomes


async def test_a_failure_and_a_cancel_give_the_slot_to_the_next_one() -> None:
    failing = json.dumps({"destination": {"fail_at": "active"}})
    async with one_slot(script=failing) as pair:
        await pair.a.client.migrate("e2", "b", detach=True)
        await wait_for_place(pair.a, "e2", 1)
        await pair.launch("e4")
        await pair.a.client.migrate("e4", "b", detach=True)
        await pair.a.client.cancel("e1")
        await wait_for_state(pair.a, "e2", "failed")
        await wait_for_state(pair.a, "e4", "completed")


async def test_an_enclave_that_ends_or_loses_its_destination_leaves_the_queue() -> None:
    async with one_slot() as pair, trio.open_nursery() as nursery:
        outcomes: dict[str, Any] = {}
        for enclave in ("e2", "e3"):
            nursery.start_soon(migrate, pair.a.client, enclave, "b", outcomes)
            await wait_for_place(pair.a, enclave, 1 if enclave == "e2" else 2)
        (pair.directory / "end-e2").write_text("3")
        await until(lambda: _has(outcomes, "e2"))
        assert isinstance(outcomes["e2"], MigrationFailed)
        await wait_for_place(pair.a, "e3", 1)
        await pair.a.client.host_remove("b")
        await pair.a.client.cancel("e1")
        await until(lambda: _has(outcomes, "e3"))
        assert isinstance(outcomes["e3"], UnknownHost)


async def test_a_stop_of_the_daemon_ends_what_is_queued_and_the_enclaves_run_on() -> None:
    async with one_slot(2) as pair:
        await pair.a.client.migrate("e2", "b", detach=True)
        await wait_for_place(pair.a, "e2", 1)
        await pair.a.stop()
        await pair.a.start()
        status = await pair.a.client.status("e2")
        assert (status["state"], status["owner_generation"]) == ("running", 1)
        let_go(pair)
        assert pair.a.daemon is not None
        await pair.b.client.host_add(
            "a", format_address(*pair.a.daemon.address), pair.a.identity.key_text
        )
        assert (await pair.a.client.migrate("e2", "b"))["state"] == "completed"


async def test_a_full_destination_keeps_the_source_waiting_and_not_others() -> None:
    async with two_sites(**{"limits.max_incoming": 1, "limits.max_outgoing": 3}) as pair:
        await pair.launch("e1", script=holding(pair))
        await pair.launch("e2")
        await pair.a.client.migrate("e1", "b", detach=True)
        await wait_for_state(pair.a, "e1", "active")
        await pair.a.client.migrate("e2", "b", detach=True)
        waiting = await wait_for_place(pair.a, "e2", 1)
        assert waiting["queue"]["waits_for"] == "b"
        # A rehearsal does not wait: it says what stands in the way now.
        await pair.launch("e3")
        assert [one["code"] for one in (await pair.a.client.check("e3", "b"))["blockers"]] == [
            "busy"
        ]
        # Asked again and again meanwhile, under one name; nothing of it is left there.
        await trio.sleep(1.0)
        assert pair.b.instances == ["e1@1"]
        let_go(pair)
        await wait_for_state(pair.a, "e2", "completed")
        row = await pair.a.client.receipt("e2")
        assert row["queued_time_ms"] >= 900


async def test_what_does_not_pass_is_not_waited_for() -> None:
    async with two_sites(**{"limits.max_enclaves": 1}) as pair:
        await pair.launch("e1")
        await pair.b.client.launch(pair.image(), enclave="other")
        with pytest.raises(MigrationBlocked) as caught:
            await pair.a.client.migrate("e1", "b")
        assert [blocker.code for blocker in caught.value.blockers] == ["enclaves"]


async def test_hosts_at_their_limits_that_send_to_each_other_all_finish() -> None:
    limits = {"limits.max_incoming": 1, "limits.max_outgoing": 1}
    async with two_sites(**limits) as pair:
        outcomes: dict[str, Any] = {}
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    for site, to in ((pair.a, "b"), (pair.b, "a")):
                        enclave = f"{site.name}{number}"
                        await site.client.launch(pair.image(), enclave=enclave)
                        nursery.start_soon(migrate, site.client, enclave, to, outcomes)
        assert set(outcomes.values()) == {"completed"}
        assert len(outcomes) == 6


async def test_switchovers_take_turns_also_in_opposite_directions() -> None:
    async with two_sites() as pair:
        story = pair.directory / "story"
        script = json.dumps({"source": {"converge": str(story)}})
        outcomes: dict[str, Any] = {}
        async with trio.open_nursery() as nursery:
            for number in range(3):
                for site, to in ((pair.a, "b"), (pair.b, "a")):
                    enclave = f"{site.name}{number}"
                    await site.client.launch(pair.image(), enclave=enclave, policy=script.encode())
                    nursery.start_soon(migrate, site.client, enclave, to, outcomes)
        assert set(outcomes.values()) == {"completed"}
        lines = [line.split() for line in story.read_text().splitlines()]
        assert len(lines) == 12
        for (had, turn), (moved, left) in zip(lines[::2], lines[1::2], strict=True):
            assert (turn, left) == ("turn", "left")
            assert had == moved, lines


async def test_while_one_switches_over_the_bulk_work_of_the_others_is_held() -> None:
    async with two_sites(**{"limits.max_outgoing": 2}) as pair:
        story = pair.directory / "story"
        await pair.launch("waits", script=holding(pair))
        await pair.a.client.migrate("waits", "b", detach=True)
        await wait_for_state(pair.a, "waits", "active")
        go = pair.directory / "leave"
        script = holding(pair, "switchover", converge=str(story), hold_until=str(go))
        await pair.launch("leaves", script=script)
        await pair.a.client.migrate("leaves", "b", detach=True)
        await wait_for_state(pair.a, "leaves", "switchover")
        await pair.launch("queued")
        await pair.a.client.migrate("queued", "b", detach=True)
        await wait_for_place(pair.a, "queued", 1)

        def held(site: Site, enclave: str) -> str:
            (instance,) = (site.directory / "state/enclaves").glob(f"{enclave}@*")
            found = instance / "gives_way"
            return found.read_text() if found.exists() else "never"

        async def is_held(site: Site, wanted: str) -> None:
            async def there() -> bool:
                return held(site, "waits") == wanted

            await until(there)

        await is_held(pair.a, "yes")
        await is_held(pair.b, "yes")
        assert held(pair.a, "leaves") == held(pair.b, "leaves") == "never"
        assert held(pair.a, "queued") == "never", "it has nothing to hold"
        leave(go)
        await is_held(pair.a, "no")
        await is_held(pair.b, "no")
        let_go(pair)
        await wait_for_state(pair.a, "waits", "completed")
        await wait_for_state(pair.a, "queued", "completed")


async def test_while_one_switches_over_no_other_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optmigd.daemon.turns.PASS_S", 60.0)
    async with two_sites() as pair:
        go = pair.directory / "leave"
        script = holding(
            pair, "switchover", converge=str(pair.directory / "story"), hold_until=str(go)
        )
        await pair.launch("leaves", script=script)
        await pair.a.client.migrate("leaves", "b", detach=True)
        await wait_for_state(pair.a, "leaves", "switchover")
        await pair.launch("later")
        await pair.a.client.migrate("later", "b", detach=True)
        await trio.sleep(0.3)  # time enough to begin, if nothing kept it from that
        assert not list((pair.b.directory / "state/enclaves").glob("later@*"))
        leave(go)
        await wait_for_state(pair.a, "later", "completed")


async def test_a_change_under_way_reaches_the_agent_and_the_streams() -> None:
    async with two_sites() as pair:
        await pair.launch("e1", script=holding(pair, "switchover"))
        started = await pair.a.client.migrate("e1", "b", detach=True, max_bandwidth=10**9)
        await wait_for_state(pair.a, "e1", "switchover")
        changed = await pair.a.client.change(
            "e1", downtime_limit_ms=75, max_bandwidth=50_000_000, on_stall="switch"
        )
        settings = {"downtime_limit_ms": 75.0, "max_bandwidth": 50_000_000, "on_stall": "switch"}
        assert changed == {"migration_id": started["migration_id"], **settings}
        (instance,) = (pair.a.directory / "state/enclaves").glob("e1@1")
        assert json.loads((instance / "set").read_text()) == settings
        assert (await summary(pair.a, "e1"))["settings"] == settings
        by_id = await pair.a.client.change(started["migration_id"], max_bandwidth=0)
        assert (by_id["max_bandwidth"], by_id["on_stall"]) == (0, "switch")
        assert json.loads((instance / "set").read_text()) == {"max_bandwidth": 0}
        with pytest.raises(MigrationError, match="on host a"):
            await pair.b.client.change("e1", on_stall="abort")
        for wrong in ({}, {"downtime_limit_ms": 0}, {"max_bandwidth": -1}, {"on_stall": "panic"}):
            with pytest.raises(RemoteProtocolError):
                await pair.a.client.call("set", {"enclave": "e1", **wrong})
        let_go(pair)
        await wait_for_state(pair.a, "e1", "completed")
        with pytest.raises(MigrationError):
            await pair.a.client.change(started["migration_id"], max_bandwidth=0)


async def test_a_change_in_the_queue_counts_when_its_turn_comes() -> None:
    async with one_slot(2, script=json.dumps({"source": {"hold_at": "switchover"}})) as pair:
        await pair.a.client.migrate("e2", "b", detach=True)
        await wait_for_place(pair.a, "e2", 1)
        await pair.a.client.change("e2", downtime_limit_ms=5)
        let_go(pair)
        await wait_for_state(pair.a, "e2", "switchover")
        assert (await summary(pair.a, "e2"))["settings"]["downtime_limit_ms"] == 5.0
        await pair.a.client.cancel("e2")


async def test_after_the_release_nothing_can_be_changed() -> None:
    async with two_sites() as pair:
        late = {"resumed_when": str(pair.directory / "go")}
        await pair.launch("e1", script=json.dumps({"destination": late}))
        await pair.a.client.migrate("e1", "b", detach=True)
        await wait_released(pair.a)
        with pytest.raises(AlreadyReleased):
            await pair.a.client.change("e1", on_stall="abort")
        let_go(pair)
        await wait_for_state(pair.a, "e1", "completed")
