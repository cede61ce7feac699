"""What was asked for when a migration began can be changed while it is under way (`set`)."""

from pathlib import Path
from typing import Any

import pytest
import trio

from optmigd.bench.programs import Program
from optmigd.protocol.errors import AlreadyReleased, EnclaveError, RemoteProtocolError
from tests.agent.test_migration import ENDLESS, MEMORY_BYTES, running
from tests.support.agents import Move

CRAWL_BYTES_S = 50_000
"""At this speed round 0 alone would take longer than the whole test may."""


async def test_a_crawling_migration_that_cannot_converge_is_let_through(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        # No downtime at all: nothing but a change can bring this to its end.
        export = {"downtime_limit_ms": 0.0, "on_stall": "abort"}
        move = Move(hosts, integers.image, MEMORY_BYTES, export=export)

        async def change(**changes: Any) -> dict[str, Any]:
            return await hosts[0].request("set", migration_id=move.migration_id, **changes)

        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            crawl = await change(max_bandwidth=CRAWL_BYTES_S)
            assert crawl == {
                "downtime_limit_ms": 0.0,
                "max_bandwidth": CRAWL_BYTES_S,
                "on_stall": "abort",
            }
            await move.add_streams()
            await hosts[0].wait_event("progress", 2)
            assert not any(item["event"] == "round" for item in hosts[0].events)
            changed = await change(max_bandwidth=0, downtime_limit_ms=1e6)
            assert (changed["max_bandwidth"], changed["downtime_limit_ms"]) == (0, 1e6)
            ended = await hosts[0].wait_event("ended")
            assert (ended["outcome"], ended["error"]) == ("completed", None)
            assert len(ended["report"]["rounds"]) == 2  # round 0, and the last pages
            nursery.cancel_scope.cancel()


async def test_what_cannot_be_changed_is_refused(tmp_path: Path, integers: Program) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES, deliver_token=False)
        which: dict[str, Any] = {"migration_id": move.migration_id}
        with pytest.raises(EnclaveError):
            await hosts[0].request("set", **which, max_bandwidth=1)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            with pytest.raises(EnclaveError):
                await hosts[1].request("set", **which, max_bandwidth=1)
            for wrong in ({"max_bandwidth": -1}, {"on_stall": "pray"}, {"streams": 3}):
                with pytest.raises(RemoteProtocolError):
                    await hosts[0].request("set", **which, **wrong)
            await move.add_streams()
            token = (await hosts[0].wait_event("release"))["payload"]
            with pytest.raises(AlreadyReleased):
                await hosts[0].request("set", **which, downtime_limit_ms=1.0)
            await move.give_token(token)
            await hosts[0].wait_event("ended")
            nursery.cancel_scope.cancel()


async def test_nothing_is_changed_of_a_migration_that_was_cancelled(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await hosts[0].request("cancel", migration_id=move.migration_id)
            with pytest.raises(EnclaveError):
                await hosts[0].request("set", migration_id=move.migration_id, max_bandwidth=1)
            await hosts[0].wait_event("ended")
            nursery.cancel_scope.cancel()
