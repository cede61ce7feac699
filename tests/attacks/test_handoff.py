"""One instance and never two: tokens, confirmations, and a source that let go."""

import pytest
import trio

from optmigd.protocol.errors import AlreadyReleased, EnclaveError
from tests.attacks.hostile import Victim, flipped
from tests.support.agents import Message


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
