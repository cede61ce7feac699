"""The point of no return: whatever breaks, the enclave runs on one host, and never on two.

`Wire` freezes or cuts what lies between the daemons; `hold_at ready` stops the source's shim after
the destination's READY and just before it releases.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from optmigd.conversation import DaemonUnreachable
from optmigd.protocol.errors import AlreadyReleased, HandoffUncertain, MigrationFailed, OptmigError
from tests.support.daemons import Pair, Site, eventually, two_sites, wait_released


def runs(site: Site) -> list[str]:
    """What the program has written: one line for each time it was started, on either host."""
    lines: list[str] = []
    for path in sorted(site.directory.glob("state/enclaves/*/output.log")):
        lines += path.read_text().splitlines()
    return lines


async def wait_status(site: Site, **expected: object) -> dict[str, Any]:
    """Wait until the status of e1 has these values."""
    status: dict[str, Any] = {}
    with trio.move_on_after(40):
        while True:
            try:
                status = dict(await site.client.status("e1"))
            except OptmigError as error:
                status = {"error": error.code}
            if all(status.get(key) == value for key, value in expected.items()):
                return status
            await trio.sleep(0.01)
    raise AssertionError(f"expected {expected}, found {status}")


async def start_and_stop_before_release(pair: Pair, **destination: object) -> Path:
    """Begin a move and return when both shims are ready, with the file that lets it go on."""
    go = pair.directory / "go"
    source = {"hold_at": "ready", "hold_until": str(go)}
    await pair.launch(script=json.dumps({"source": source, "destination": destination}))
    await pair.a.client.migrate("e1", "b", detach=True)
    await wait_both_ready(pair)
    return go


async def wait_both_ready(pair: Pair) -> None:
    """Wait until the source's shim has READY and holds."""
    await eventually(held(pair), "the source's shim holds")


def held(pair: Pair) -> Callable[[], bool]:
    return (pair.a.directory / "state/enclaves/e1@1/held").exists


async def assert_only_on_b(pair: Pair) -> None:
    await wait_status(pair.a, host="b", state="running", owner_generation=2)
    await wait_status(pair.b, host="b", state="running", owner_generation=2)
    assert runs(pair.b) == ["generation 1", "generation 2"]
    await eventually(lambda: not agents_alive(pair.a), "the agent on a has ended")
    await eventually(lambda: runs(pair.a) == [], "a has kept nothing of the program's")


async def assert_only_on_a(pair: Pair) -> None:
    await wait_status(pair.a, host="a", state="running", owner_generation=1)
    await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")
    assert runs(pair.a) == ["generation 1"]
    # Only an agent that has withdrawn takes part in another migration.
    assert (await pair.a.client.check("e1", "b"))["blockers"] == []


def agents_alive(site: Site) -> list[str]:
    pids = [path.read_text() for path in site.directory.glob("state/enclaves/*/agent.pid")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_link_cut_in_a_round() -> None:
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"source": {"hold_at": "active"}}))
        async with trio.open_nursery() as nursery:

            async def migrate() -> None:
                with pytest.raises(MigrationFailed, match="runs on here") as caught:
                    await pair.a.client.migrate("e1", "b")
                assert caught.value.fields["cause"] == "channel-closed"

            nursery.start_soon(migrate)
            await eventually(held(pair), "the source's shim holds in a round")
            pair.wire.cut()
        await assert_only_on_a(pair)


async def test_link_cut_after_ready_and_before_the_release() -> None:
    """B cannot know whether A has let go; it asks, and destroys only then."""
    async with two_sites() as pair:
        await start_and_stop_before_release(pair)
        pair.wire.cut()
        await assert_only_on_a(pair)
        assert (await pair.a.client.status("e1"))["migration"]["state"] == "failed"  # type: ignore[index]


async def test_source_daemon_stopped_before_the_release() -> None:
    async with two_sites() as pair:
        await start_and_stop_before_release(pair)
        withdrawn = pair.a.directory / "state/enclaves/e1@1/withdrawn"
        assert not withdrawn.exists()
        await pair.a.stop()
        assert withdrawn.exists()
        assert agents_alive(pair.a) != []
        await pair.a.start()
        await assert_only_on_a(pair)


async def test_source_daemon_killed_before_the_release() -> None:
    """Killed: the journal still says that the migration is under way."""
    async with two_sites() as pair:
        await start_and_stop_before_release(pair)
        await pair.a.stop_as_if_killed()
        await pair.a.start()
        await assert_only_on_a(pair)


@pytest.mark.parametrize("cut", ["token", "resumed"])
async def test_link_cut_after_the_release(cut: str) -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=cut == "token", from_target=True)
        go.touch()
        await wait_released(pair.a)
        if cut == "resumed":
            await wait_status(pair.b, host="b", state="running")
        with pytest.raises(AlreadyReleased, match="can only be completed"):
            await pair.a.client.cancel("e1")
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        pair.wire.cut()
        await assert_only_on_b(pair)
        receipt = await pair.a.client.receipt("e1")
        assert receipt["receipt"]["body"] == b"body of the source"


async def test_link_cut_when_the_destinations_daemon_has_heard_nothing_of_ready() -> None:
    """READY goes past it, and its agent's `switchover` may still wait to be read."""
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair, unsaid="switchover")
        pair.wire.freeze(to_target=True, from_target=True)
        go.touch()
        await wait_released(pair.a)
        pair.wire.cut()
        await assert_only_on_b(pair)


@pytest.mark.parametrize("cut", ["token", "resumed"])
@pytest.mark.parametrize("restarted", ["a", "b", "both"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_daemons_restarted_after_the_release(restarted: str, cut: str, how: str) -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=cut == "token", from_target=True)
        go.touch()
        await wait_released(pair.a)
        if cut == "resumed":
            await wait_status(pair.b, host="b", state="running")
        sites = [site for site in (pair.a, pair.b) if restarted in (site.name, "both")]
        for site in sites:
            if how == "killed":
                await site.stop_as_if_killed()
            else:
                await site.stop()
        pair.wire.cut()
        for site in sites:
            await site.start()
        await assert_only_on_b(pair)


@pytest.mark.parametrize("how", ["cancel", "timeout", "cut", "stop of the daemon"])
async def test_what_loses_the_race_against_the_release_follows_it(how: str) -> None:
    async with two_sites() as pair:
        source = {
            "hold_at": "ready",
            "hold_until": str(pair.directory / "go"),
            "release_first": True,
        }
        await pair.launch(script=json.dumps({"source": source}))
        timeout_s = 3.0 if how == "timeout" else 0.0
        async with trio.open_nursery() as nursery:
            results: list[object] = []

            async def migrate() -> None:
                try:
                    results.append(await pair.a.client.migrate("e1", "b", timeout_s=timeout_s))
                except DaemonUnreachable:
                    assert how == "stop of the daemon"

            nursery.start_soon(migrate)
            await wait_both_ready(pair)
            if how == "cancel":
                with pytest.raises(AlreadyReleased, match="can only be completed"):
                    await pair.a.client.cancel("e1")
            elif how == "cut":
                pair.wire.cut()
            elif how == "stop of the daemon":
                await pair.a.stop()
                await pair.a.start()
        await assert_only_on_b(pair)
        assert len(results) == (0 if how == "stop of the daemon" else 1)


async def test_agent_of_the_source_dies_after_the_release() -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=True, from_target=True)
        go.touch()
        await wait_released(pair.a)
        pair.a.end_agents()
        pair.wire.cut()
        await assert_only_on_b(pair)


async def test_a_confirmation_that_never_comes_is_uncertain() -> None:
    async with two_sites() as pair:
        go = pair.directory / "go"
        source = {"hold_at": "ready", "hold_until": str(go)}
        await pair.launch(script=json.dumps({"source": source}))
        async with trio.open_nursery() as nursery:

            async def migrate() -> None:
                with pytest.raises(HandoffUncertain, match="delivered again until it does"):
                    await pair.a.client.migrate("e1", "b", timeout_s=5.0)

            nursery.start_soon(migrate)
            await wait_both_ready(pair)
            pair.wire.freeze(to_target=True, from_target=True)
            go.touch()
        status = await pair.a.client.status("e1")
        assert status["state"] == "migrating"
        pair.wire.cut()
        await assert_only_on_b(pair)


async def test_a_token_comes_past_the_daemon_there() -> None:
    """A shim that takes it from the data stream alone has it, and its daemon tells of it once."""
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"destination": {"listens_on": "stream"}}))
        result = await pair.a.client.migrate("e1", "b", streams=2)
        assert result["state"] == "completed"
        await assert_only_on_b(pair)


async def test_a_shim_that_has_the_token_is_not_destroyed_by_a_daemon_that_never_saw_it() -> None:
    """The link froze before its token; the one of the stream has come. Then all breaks."""
    async with two_sites() as pair:
        say = pair.directory / "say"
        go = await start_and_stop_before_release(pair, listens_on="stream", resumed_when=str(say))
        pair.wire.freeze(to_target=True, from_target=True, streams_too=False)
        go.touch()
        await eventually(lambda: runs(pair.b) != [], "the program runs on b")
        pair.wire.cut()
        say.touch()
        await assert_only_on_b(pair)


async def test_an_unanswered_token_is_delivered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optmigd.daemon.delivery.RESUMED_TIMEOUT_S", 0.5)
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"destination": {"ignore_tokens": 1}}))
        result = await pair.a.client.migrate("e1", "b")
        assert result["state"] == "completed"
        await assert_only_on_b(pair)


async def test_a_destination_lost_after_the_release_is_an_operators_decision() -> None:
    async with two_sites() as pair:
        go = await start_and_stop_before_release(pair)
        pair.wire.freeze(to_target=True, from_target=True)
        go.touch()
        await wait_released(pair.a)
        pair.b.end_agents()
        pair.wire.cut()
        await eventually(lambda: pair.b.instances == [], "b has nothing left")
        assert (await pair.a.client.status("e1"))["state"] == "migrating"
        with pytest.raises(AlreadyReleased, match="optmigctl recover e1"):
            await pair.a.client.stop("e1")
        await pair.a.client.recover("e1", decision="give-up", confirmed=True)
        status = await pair.a.client.status("e1")
        assert status["state"] == "lost"
        assert status["migration"] is not None
        assert status["migration"]["error"]["code"] == "uncertain"
        await eventually(lambda: not agents_alive(pair.a), "the released agent has ended")


async def test_a_new_daemon_destroys_nothing_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon that handed the token over was killed before it journaled what came of it.

    The next one knows of no token, and the source, where an operator gave the delivery up, says
    that the migration has failed. Only the shim knows better.
    """
    monkeypatch.setattr("optmigd.daemon.delivery.RESUMED_TIMEOUT_S", 0.5)
    async with two_sites() as pair:
        say = pair.directory / "say"
        await pair.launch(script=json.dumps({"destination": {"resumed_when": str(say)}}))
        await pair.a.client.migrate("e1", "b", detach=True)
        await eventually(lambda: runs(pair.b), "the program runs on b")
        pair.wire.freeze(to_target=True, from_target=True)
        await pair.b.stop_as_if_killed()
        await pair.a.client.recover("e1", decision="give-up", confirmed=True)
        await pair.b.start()
        kept = pair.b.directory / "state/enclaves/e1@1/kept"
        await eventually(kept.exists, "the shim on b has refused to give up")
        say.touch()
        await wait_status(pair.b, host="b", state="running", owner_generation=2)
        assert runs(pair.b) == ["generation 1", "generation 2"]
        assert len(agents_alive(pair.b)) == 1
