"""A move between two daemons: what a client sees, and what is where afterwards."""

# It asks for states that no event announces.
# ruff: noqa: ASYNC110

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from optmigd.protocol.errors import (
    AlreadyMigrating,
    HostKeyMismatch,
    HostUnreachable,
    MigrationBlocked,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    MigrationTimeout,
    OptmigError,
    UnknownEnclave,
    UnknownHost,
)
from tests.support.daemons import Pair, eventually, two_sites


def script(**roles: dict[str, Any]) -> str:
    return json.dumps(roles)


async def all_logs(client: Any, *, follow: bool = False) -> bytes:
    async with client.logs("e1", follow=follow) as pieces:
        return b"".join([piece async for piece in pieces])


async def wait_for_state(pair: Pair, state: str) -> None:
    """Wait until the migration of e1 that is under way is in a state."""
    with trio.fail_after(10):
        while True:
            migration = (await pair.a.client.status("e1"))["migration"]
            if migration is not None and migration["state"] == state:
                return
            await trio.sleep(0.01)


async def assert_runs_on_a(pair: Pair) -> None:
    """Nothing was lost: the enclave runs where it was, and the other host has nothing of it."""
    status = await pair.a.client.status("e1")
    assert (status["state"], status["host"], status["owner_generation"]) == ("running", "a", 1)
    await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")
    assert await pair.b.client.list_enclaves() == []


async def test_enclave_moves_and_ends_on_the_other_host() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        events: list[dict[str, Any]] = []
        result = await pair.a.client.migrate("e1", "b", streams=3, on_event=events.append)
        assert result["state"] == "completed"
        assert (result["source"], result["destination"]) == ("a", "b")
        assert result["owner_generation"] == 2
        assert [one["round_no"] for one in result["rounds"]] == [0, 1]
        assert result["downtime_ms"] == 1.5
        states = [event["state"] for event in events if "state" in event]
        assert states == ["active", "switchover", "completed"]
        assert [event["round"]["round_no"] for event in events if "round" in event] == [0, 1]
        there = await pair.b.client.status("e1")
        assert (there["state"], there["host"], there["owner_generation"]) == ("running", "b", 2)
        told_by_a = await pair.a.client.status("e1")
        assert {**told_by_a, "migration": None} == {**there, "migration": None}
        assert [(one["enclave"], one["state"]) for one in await pair.a.client.list_enclaves()] == [
            ("e1", "moved")
        ]
        flag.write_text("7")
        assert await pair.a.client.wait("e1") == {"exit_status": 7, "host": "b"}
        assert await pair.b.client.wait("e1") == {"exit_status": 7, "host": "b"}


async def test_an_image_travels_once() -> None:
    async with two_sites() as pair:
        await pair.launch()
        images = list((pair.a.directory / "state/images").iterdir())
        await pair.a.client.migrate("e1", "b")
        copy = pair.b.directory / "state/images" / images[0].name
        assert copy.read_bytes() == images[0].read_bytes()
        made_ns = copy.stat().st_mtime_ns
        await pair.b.client.migrate("e1", "a")
        await pair.a.client.migrate("e1", "b")
        assert copy.stat().st_mtime_ns == made_ns


async def test_moving_to_and_fro_keeps_one_story() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        hosts = [pair.a, pair.b]
        ends: list[object] = []
        followed: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def wait(site: Any) -> None:
                ends.append(await site.client.wait("e1"))

            async def follow() -> None:
                followed.append(await all_logs(pair.a.client, follow=True))

            nursery.start_soon(wait, pair.a)
            nursery.start_soon(follow)
            for move in range(5):
                await hosts[move % 2].client.migrate("e1", hosts[1 - move % 2].name)
            nursery.start_soon(wait, pair.b)
            for site in hosts:
                status = await site.client.status("e1")
                assert (status["host"], status["owner_generation"]) == ("b", 6)
            flag.write_text("5")
        expected = b"".join(b"generation %d\n" % number for number in range(1, 7))
        assert ends == [{"exit_status": 5, "host": "b"}] * 2
        assert followed == [expected]
        assert await all_logs(pair.a.client) == expected
        assert await all_logs(pair.b.client) == expected


async def test_watchers_see_both_roles() -> None:
    async with two_sites() as pair:
        await pair.launch()
        seen: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
        async with trio.open_nursery() as nursery:

            async def watch(site: Any) -> None:
                async with site.client.watch() as events:
                    async for event in events:
                        seen[site.name].append(event)
                        if event.get("state") == "completed":
                            return

            nursery.start_soon(watch, pair.a)
            nursery.start_soon(watch, pair.b)
            await trio.testing.wait_all_tasks_blocked(0.1)
            await pair.a.client.migrate("e1", "b")
        for name, role, peer in (("a", "source", "b"), ("b", "destination", "a")):
            assert {(event["enclave"], event["role"], event["peer"]) for event in seen[name]} == {
                ("e1", role, peer)
            }


async def test_receipts_are_kept_on_both_hosts() -> None:
    async with two_sites() as pair:
        await pair.launch()
        with pytest.raises(MigrationError, match="no receipt"):
            await pair.a.client.receipt("e1")
        result = await pair.a.client.migrate("e1", "b")
        ours = await pair.a.client.receipt("e1")
        assert ours["receipt"]["body"] == b"body of the source"
        assert (ours["role"], ours["peer"]) == ("source", "b")
        assert ours == await pair.a.client.receipt(result["migration_id"])
        await eventually_has_receipt(pair)
        theirs = await pair.b.client.receipt(result["migration_id"])
        assert theirs["receipt"]["body"] == b"body of the destination"
        assert theirs["migration_id"] == ours["migration_id"]


async def eventually_has_receipt(pair: Pair) -> None:
    with trio.fail_after(10):
        while True:
            try:
                await pair.b.client.receipt("e1")
            except MigrationError:
                await trio.sleep(0.01)
            else:
                return


async def test_check_says_what_it_would_take_and_changes_nothing() -> None:
    async with two_sites() as pair:
        await pair.launch()
        answer = await pair.a.client.check("e1", "b")
        assert answer["blockers"] == []
        assert answer["forecast"] == {"rounds": 3, "downtime_ms": 12.5}
        await assert_runs_on_a(pair)
        assert (await pair.a.client.status("e1"))["migration"] is None
        assert (await pair.a.client.migrate("e1", "b"))["state"] == "completed"


def blocker(code: str) -> dict[str, str]:
    return {"code": code, "subject": f"the {code}", "message": "mend it"}


@pytest.mark.parametrize("dry_run", [True, False])
async def test_every_blocker_is_named_at_once(dry_run: bool) -> None:
    async with two_sites() as pair:
        await pair.b.client.launch(pair.image(), enclave="e1")
        text = json.dumps(
            {
                "status_blockers": [blocker("socket")],
                "destination": {"refuse": [blocker("file-absent"), blocker("cpu-features")]},
            }
        )
        await pair.launch(script=text)
        if dry_run:
            answer = await pair.a.client.check("e1", "b")
            found = [one["code"] for one in answer["blockers"]]
        else:
            with pytest.raises(MigrationBlocked) as caught:
                await pair.a.client.migrate("e1", "b")
            found = [one.code for one in caught.value.blockers]
            migration = caught.value.fields["migration"]
            assert isinstance(migration, dict) and migration["state"] == "failed"
        assert found == ["socket", "enclave-exists", "file-absent", "cpu-features"]
        assert (await pair.a.client.status("e1"))["state"] == "running"
        assert (await pair.b.client.status("e1"))["owner_generation"] == 1
        await eventually(lambda: pair.b.instances == ["e1@1"], "b has ended the rehearsal")


async def test_blockers_that_the_source_shim_reports_are_blockers() -> None:
    async with two_sites() as pair:
        text = script(source={"fail_at": "setup", "code": "blocked"})
        await pair.launch(script=text)
        with pytest.raises(MigrationBlocked):
            await pair.a.client.migrate("e1", "b")
        await assert_runs_on_a(pair)


async def test_too_little_memory_is_a_blocker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_sites() as pair:
        await pair.launch()
        monkeypatch.setattr("optmigd.daemon.capacity._meminfo", lambda _name: 100 << 20)
        with pytest.raises(MigrationBlocked, match=r"memory \(b\)"):
            await pair.a.client.migrate("e1", "b")
        await assert_runs_on_a(pair)


async def test_unknown_names_are_refused() -> None:
    async with two_sites() as pair:
        await pair.launch()
        with pytest.raises(UnknownHost, match="'nowhere'"):
            await pair.a.client.migrate("e1", "nowhere")
        with pytest.raises(UnknownEnclave, match="'nobody'"):
            await pair.a.client.migrate("nobody", "b")
        await pair.a.client.migrate("e1", "b")
        with pytest.raises(UnknownEnclave, match="has moved to host b"):
            await pair.a.client.migrate("e1", "b")
        with pytest.raises(UnknownEnclave, match="has moved to host b"):
            await pair.a.client.stop("e1")


async def test_host_that_is_down() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.b.stop()
        pair.wire.cut(refuse=True)
        assert pair.a.daemon is not None
        await pair.a.client.host_remove("b")
        free = "127.0.0.1:1"  # nobody listens on tcpmux here
        await pair.a.client.host_add("b", free, pair.b.identity.key_text)
        with pytest.raises(HostUnreachable, match=r"no connection to host b at 127\.0\.0\.1:1"):
            await pair.a.client.migrate("e1", "b")
        status = await pair.a.client.status("e1")
        assert status["state"] == "running"
        assert status["migration"] is not None and status["migration"]["state"] == "failed"


async def test_host_with_another_key() -> None:
    async with two_sites() as pair:
        await pair.launch()
        address = (await pair.b.client.host_identity())["listen"]
        await pair.a.client.host_remove("b")
        await pair.a.client.host_add("b", address, "A" * 42 + "g=")
        with pytest.raises(HostKeyMismatch, match="expected host b with key SHA256:"):
            await pair.a.client.migrate("e1", "b")
        await assert_runs_on_a(pair)


async def test_host_that_does_not_know_us() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.b.client.host_remove("a")
        with pytest.raises(OptmigError, match="host b does not know the key") as caught:
            await pair.a.client.migrate("e1", "b")
        assert caught.value.code == "handshake-failed"
        await assert_runs_on_a(pair)


async def test_a_second_migration_is_refused() -> None:
    async with two_sites() as pair:
        await pair.launch(script=script(source={"hold_at": "active"}))
        first = await pair.a.client.migrate("e1", "b", detach=True)
        await wait_for_state(pair, "active")
        with pytest.raises(AlreadyMigrating, match="to host b") as caught:
            await pair.a.client.migrate("e1", "b")
        assert caught.value.fields["migration_id"] == first["migration_id"]
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        assert (await pair.b.client.status("e1"))["state"] == "migrating"
        with pytest.raises(MigrationError, match="cancel the migration on host a"):
            await pair.b.client.cancel("e1")


@pytest.mark.parametrize("hold", ["setup", "active", "switchover", "ready"])
async def test_cancel_before_the_release(hold: str) -> None:
    async with two_sites() as pair:
        await pair.launch(script=script(source={"hold_at": hold}))
        outcome: list[object] = []
        async with trio.open_nursery() as nursery:

            async def migrate() -> None:
                with pytest.raises(MigrationCancelled, match="it runs on here") as caught:
                    await pair.a.client.migrate("e1", "b")
                outcome.append(caught.value.fields["migration"])

            nursery.start_soon(migrate)
            await wait_for_state(pair, "switchover" if hold == "ready" else hold)
            answer = await pair.a.client.cancel("e1")
            assert answer["state"] == "cancelled"
        assert isinstance(outcome[0], dict)
        assert outcome[0]["migration_id"] == answer["migration_id"]
        assert outcome[0]["state"] == "cancelled"
        await assert_runs_on_a(pair)
        with pytest.raises(MigrationError, match="no migration of enclave 'e1'"):
            await pair.a.client.cancel("e1")


async def test_after_a_failure_the_next_one_may_begin_at_once() -> None:
    """What is left of the attempt before must not be in the way of the next."""
    async with two_sites() as pair:
        go = pair.directory / "go"
        await pair.launch(script=script(source={"hold_at": "ready", "hold_until": str(go)}))
        for _ in range(3):
            await pair.a.client.migrate("e1", "b", detach=True)
            await wait_for_state(pair, "switchover")
            await pair.a.client.cancel("e1")
            assert (await pair.a.client.check("e1", "b"))["blockers"] == []
        go.touch()
        assert (await pair.a.client.migrate("e1", "b"))["state"] == "completed"


async def test_time_out_before_the_release() -> None:
    async with two_sites() as pair:
        await pair.launch(script=script(source={"hold_at": "active"}))
        with pytest.raises(MigrationTimeout, match=r"longer than 0\.3 s"):
            await pair.a.client.migrate("e1", "b", timeout_s=0.3)
        await assert_runs_on_a(pair)


@pytest.mark.parametrize("state", ["setup", "active", "switchover"])
@pytest.mark.parametrize("role", ["source", "destination"])
async def test_failure_of_a_shim(role: str, state: str) -> None:
    async with two_sites() as pair:
        await pair.launch(script=script(**{role: {"fail_at": state, "code": "not-converging"}}))
        with pytest.raises(OptmigError) as caught:
            await pair.a.client.migrate("e1", "b")
        assert caught.value.code == "not-converging"
        await assert_runs_on_a(pair)


@pytest.mark.parametrize("state", ["setup", "active", "switchover"])
async def test_death_of_the_destination_shim(state: str) -> None:
    async with two_sites() as pair:
        await pair.launch(script=script(destination={"die_at": state}))
        with pytest.raises(MigrationFailed):
            await pair.a.client.migrate("e1", "b")
        await assert_runs_on_a(pair)


async def test_program_that_ends_during_a_migration() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(script=script(source={"hold_at": "active"}), ends_when=str(flag))
        async with trio.open_nursery() as nursery:

            async def migrate() -> None:
                with pytest.raises(MigrationFailed, match="ended during the migration"):
                    await pair.a.client.migrate("e1", "b")

            nursery.start_soon(migrate)
            await wait_for_state(pair, "active")
            flag.write_text("4")
        assert await pair.a.client.wait("e1") == {"exit_status": 4, "host": "a"}
        await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")


async def test_a_client_that_leaves_ends_nothing() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "go"
        await pair.launch(script=script(source={"hold_at": "active", "hold_until": str(flag)}))
        with trio.move_on_after(0.3) as left:
            await pair.a.client.migrate("e1", "b")
        assert left.cancelled_caught
        await wait_for_state(pair, "active")
        flag.touch()
        with trio.fail_after(10):
            while (await pair.a.client.status("e1"))["host"] != "b":
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    "params",
    [
        {"mode": "teleport"},
        {"streams": 0},
        {"streams": 65},
        {"on_stall": "pray"},
        {"timeout_s": -1.0},
        {"max_bandwidth": -5},
        {"downtime_limit_ms": 0.0},
        {"streams": "two"},
        {"speed": 9},
    ],
)
async def test_options_that_cannot_be(params: dict[str, Any]) -> None:
    async with two_sites() as pair:
        await pair.launch()
        with pytest.raises(OptmigError) as caught:
            await pair.a.client.call("migrate", {"enclave": "e1", "host": "b", **params})
        assert next(iter(params)) in caught.value.message
        await assert_runs_on_a(pair)


async def test_images_are_removed_when_no_enclave_needs_them(tmp_path: Path) -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        await pair.a.stop()
        await pair.a.start()
        assert list((pair.a.directory / "state/images").iterdir()) == []
        await pair.b.client.migrate("e1", "a")
        assert (await pair.a.client.status("e1"))["owner_generation"] == 3
