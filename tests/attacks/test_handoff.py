"""One instance and never two: tokens, confirmations, and a source that let go."""

from collections.abc import Callable

import pytest
import trio

from optmigd.protocol.errors import AlreadyReleased, EnclaveError
from optmigd.protocol.wire import frame
from tests.attacks.hostile import Recording, Victim, flipped
from tests.support.agents import Message
from tests.support.daemons import eventually


async def _state(agent: object) -> str:
    status: Message = await agent.request("status")  # type: ignore[attr-defined]
    return str(status["state"])


async def test_tokens_confirmations_and_a_source_that_let_go(victim: Victim) -> None:
    """One move, held at the point of no return, with everything a host can try there.

    Three destinations know of it: the true one, a second one told of the same migration that is
    given everything that the true one got, and an unborn one.
    """
    old = victim.recording
    async with victim.hosts(3) as (source, destination, second):
        move = victim.hostile(source, destination, deliver_token=False, deliver_resumed=False)
        twin = victim.hostile(source, second, migration_id=move.migration_id)
        await twin.order_receive()
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.connect_streams(nursery)
            token = (await source.wait_event("release"))["payload"]
            assert await _state(source) == "released"
            assert await _state(destination) == "waiting"

            # The twin gets every payload and the token, twice.
            for payload in [*move.recorded.to_destination, *move.recorded.to_destination]:
                await second.notify("session", migration_id=move.migration_id, payload=payload)
            for _ in range(2):
                await second.notify(
                    "token_delivered", migration_id=move.migration_id, payload=token
                )
            ended = await second.wait_event("ended")
            assert (ended["outcome"], ended["error"]["code"]) == ("failed", "handshake-failed")

            # The true one takes no other token: changed, cut, of an earlier move, a confirmation.
            wrong = [flipped(token, at) for at in (0, len(token) // 2, -1)]
            wrong += [token[:-1], token + b"\0", b"", old.token, old.resumed, bytes(60_000)]
            for payload in wrong:
                await destination.notify(
                    "token_delivered", migration_id=move.migration_id, payload=payload
                )
            await destination.notify(
                "token_delivered", migration_id=old.migration_id, payload=old.token
            )
            # Nor does it harm it what is done to the session and the streams that are over: the
            # source has let go, so this is the only instance.
            for payload in (move.recorded.to_destination[0], b"", bytes(100)):
                await destination.notify("session", migration_id=move.migration_id, payload=payload)
            await move.spoil_streams()
            await trio.sleep(1.0)
            assert await _state(destination) == "waiting"
            assert not [item for item in destination.events if item["event"] == "ended"]
            assert not [item for item in destination.events if item["event"] == "resumed"]

            # The source that let go runs for nobody.
            with pytest.raises(AlreadyReleased):
                await source.request("cancel", migration_id=move.migration_id)
            again = victim.hostile(source, second)
            with pytest.raises(EnclaveError):
                await again.order_export()
            receive = victim.hostile(second, source)
            with pytest.raises(EnclaveError):
                await receive.order_receive()
            with pytest.raises(EnclaveError):
                await source.request("sample_dirty", interval_s=0.1)
            for forged in (flipped(token, 0), token, old.resumed, b"", bytes(200)):
                await source.notify(
                    "resumed_delivered", migration_id=move.migration_id, payload=forged
                )
                await source.notify("session", migration_id=move.migration_id, payload=forged)
            assert await _state(source) == "released"

            # The token itself starts it once, however often it comes.
            for count in (1, 2, 3):
                await destination.notify(
                    "token_delivered", migration_id=move.migration_id, payload=token
                )
                resumed = (await destination.wait_event("resumed", count))["payload"]
            assert await _state(destination) == "running"
            assert await _state(source) == "released"
            changed = flipped(resumed, 5)
            await source.notify(
                "resumed_delivered", migration_id=move.migration_id, payload=changed
            )
            assert await _state(source) == "released"
            await source.notify(
                "resumed_delivered", migration_id=move.migration_id, payload=resumed
            )
            assert (await source.wait_event("ended"))["outcome"] == "completed"
            nursery.cancel_scope.cancel()
    victim.moved_to(destination)
    await victim.move_honestly()


WRONG_ON_STREAM: dict[str, Callable[[bytes, Recording], bytes]] = {
    "changed": lambda token, _: frame(flipped(token, len(token) // 2)),
    "of an earlier move": lambda _, old: frame(old.token),
    "a confirmation": lambda _, old: frame(old.resumed),
    "empty": lambda _token, _old: frame(b""),
    "too long": lambda token, _: (1 << 31).to_bytes(4, "big") + token,
    "a record": lambda _, old: old.records[0][0],
    "cut": lambda token, _: frame(token)[:-1],
}


@pytest.mark.parametrize("what", WRONG_ON_STREAM)
async def test_a_wrong_token_on_a_stream_starts_nothing_and_ends_nothing(
    victim: Victim, what: str
) -> None:
    """The source has let go: the true token, which the daemons carry as well, must find it."""
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, deliver_token=False)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.connect_streams(nursery)
            token = (await source.wait_event("release"))["payload"]
            wrong = WRONG_ON_STREAM[what](token, victim.recording)
            await move.say_to_destination(wrong, then_cut=what == "cut")
            log = destination.directory / "agent.log"
            await eventually(lambda: "no_token_on_stream" in log.read_text(), "it was refused")
            assert await _state(destination) == "waiting"
            assert not [item for item in destination.events if item["event"] == "resumed"]
            await move.give_token(token)
            await destination.wait_event("resumed")
            assert (await source.wait_event("ended"))["outcome"] == "completed"
            nursery.cancel_scope.cancel()
        assert await _state(destination) == "running"
    victim.moved_to(destination)


async def test_a_token_on_a_stream_starts_it_once(victim: Victim) -> None:
    """No daemon there has seen it; afterwards the daemons deliver it as well."""
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, deliver_token=False, deliver_resumed=False)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.connect_streams(nursery)
            token = (await source.wait_event("release"))["payload"]
            await move.say_to_destination(2 * frame(token))
            resumed = (await destination.wait_event("resumed"))["payload"]
            assert await _state(destination) == "running"
            for count in (2, 3):
                await move.give_token(token)
                assert (await destination.wait_event("resumed", count))["payload"] == resumed
            await source.notify(
                "resumed_delivered", migration_id=move.migration_id, payload=resumed
            )
            assert (await source.wait_event("ended"))["outcome"] == "completed"
            nursery.cancel_scope.cancel()
        log = (destination.directory / "agent.log").read_text()
        assert "no_token_on_stream" not in log
    victim.moved_to(destination)
    await victim.move_honestly()


async def test_a_released_source_cannot_be_woken(victim: Victim) -> None:
    """The host signals the parked process of a source that let go: it exits and never runs."""
    async with victim.hosts() as (source, destination):
        move = victim.hostile(source, destination, deliver_resumed=False)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.connect_streams(nursery)
            await destination.wait_event("resumed")
            before = source.output()
            victim.signal_program(source)
            assert await _state(source) in ("released", "exited")
            assert source.output() == before
            await source.notify(
                "resumed_delivered",
                migration_id=move.migration_id,
                payload=(await destination.wait_event("resumed"))["payload"],
            )
            assert (await source.wait_event("ended"))["outcome"] == "completed"
            nursery.cancel_scope.cancel()
        assert await _state(destination) == "running"
    victim.moved_to(destination)
