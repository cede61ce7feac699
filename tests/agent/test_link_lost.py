"""A destination whose daemon has lost the link: it ends at once, unless it has said READY."""

import socket
from pathlib import Path

import pytest
import trio

from optmigd.bench.programs import Program
from tests.agent.test_cancel import seen
from tests.agent.test_migration import MEMORY_BYTES, eventually, running, state_of
from tests.support.agents import Move
from tests.support.busy import ends_rightly


@pytest.mark.parametrize("until", ["session", "answer", "first stream", "streams"])
async def test_what_is_not_ready_ends_and_is_destroyed(
    tmp_path: Path, integers: Program, answer: bytes, until: str
) -> None:
    async with running(tmp_path, integers) as (source, destination):
        move = Move([source, destination], integers.image, MEMORY_BYTES)
        idle, other = socket.socketpair()
        with idle, other:
            async with trio.open_nursery() as nursery:
                if until == "session":
                    await move.order_receive()
                else:
                    await move.begin(nursery)
                    await eventually(lambda: is_active(move))
                for index in range({"first stream": 1, "streams": move.streams}.get(until, 0)):
                    with other.dup() as end:
                        await destination.request(
                            "add_stream",
                            end.fileno(),
                            migration_id=move.migration_id,
                            index=index,
                        )
                assert await state_of(destination) == "waiting"
                for _ in range(2):
                    await destination.request("link_lost", migration_id=move.migration_id)
                ended = await destination.wait_event("ended")
                assert (ended["outcome"], ended["error"]["code"]) == ("failed", "channel-closed")
                assert await state_of(destination) == "booting"
                if until != "session":
                    await source.request("cancel", migration_id=move.migration_id)
                nursery.cancel_scope.cancel()
        await ends_rightly(source, answer)


async def is_active(move: Move) -> bool:
    return seen(move.destination, "state", state="active")


async def test_what_is_ready_waits_on_for_the_token(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES, deliver_token=False)
        async with trio.open_nursery() as nursery:
            token = await move.up_to_release(nursery)
            for _ in range(2):
                await hosts[1].request("link_lost", migration_id=move.migration_id)
            assert await state_of(hosts[1]) == "waiting"
            await move.give_token(token)
            for host in hosts:
                assert (await host.wait_event("ended"))["outcome"] == "completed"
            await hosts[1].request("link_lost", migration_id=move.migration_id)
            nursery.cancel_scope.cancel()
        await ends_rightly(hosts[1], answer)
