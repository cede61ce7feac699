"""Moves between two real agents with a real image; this test plays both daemons.

The whole system, with daemons, is tested in tests/migration and tests/handoff. Here stands what
only the shims can be asked: who may run when, what a relay that lies can do, what is left behind.
"""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from optmigd.bench.programs import Program
from optmigd.enclave_shim.image import load
from optmigd.enclave_shim.migration.report import receipt_data
from optmigd.enclave_shim.platforms.sim import SimPlatform
from optmigd.enclave_shim.policy import parse
from optmigd.protocol.errors import (
    AlreadyMigrating,
    AlreadyReleased,
    EnclaveError,
    OptmigError,
)
from tests.support.agents import AgentHandle, Move, agents, launch_params
from tests.support.busy import BUSY, EXIT_STATUS, ends_rightly

ENDLESS = ["10000000000"]
MEMORY_BYTES = 256 << 20


async def resident_bytes(agent: AgentHandle) -> int:
    return int((await agent.request("status"))["resident_bytes"])


async def holds_at_least(agent: AgentHandle, size_bytes: int) -> bool:
    return await resident_bytes(agent) >= size_bytes


async def holds_nothing(agent: AgentHandle) -> bool:
    return await resident_bytes(agent) == 0


async def is_in_state(agent: AgentHandle, state: str) -> bool:
    return await state_of(agent) == state


async def has_written(agent: AgentHandle, text: bytes) -> bool:
    return text in agent.output()


@asynccontextmanager
async def running(
    tmp_path: Path, integers: Program, count: int = 2, **changes: object
) -> AsyncIterator[list[AgentHandle]]:
    """Agents, the first of which runs the program."""
    with trio.fail_after(40):
        async with agents(tmp_path, count) as handles:
            params = launch_params(integers.image, **{"args": list(BUSY), **changes})
            await handles[0].request("launch", **params)
            await eventually(lambda: holds_at_least(handles[0], 8 << 20))
            yield handles


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until it is so, for at most 20 seconds."""
    for _ in range(1000):
        if await check():
            return
        await trio.sleep(0.02)
    raise AssertionError("it never came to be")


async def state_of(agent: AgentHandle) -> str:
    status = await agent.request("status")
    return str(status["state"])


async def test_a_program_moves_three_times_and_ends_with_the_right_answer(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers, 4) as hosts:
        for hop in range(3):
            move = Move(
                hosts[hop:],
                integers.image,
                MEMORY_BYTES,
                generation=hop + 1,
                streams=hop + 1,
                export={"verify": True},
            )
            here, there = await move.run()
            assert (here["outcome"], here["error"]) == ("completed", None)
            assert (there["outcome"], there["error"]) == ("completed", None)
            report = here["report"]
            assert report["verified"] is True
            assert report["owner_generation"] == hop + 2
            assert report["state_digest"] == there["report"]["state_digest"]
            assert report["rounds"][0]["pages"] * 4096 >= 8 << 20
            assert await state_of(hosts[hop]) == "released"
            await eventually(partial(holds_nothing, hosts[hop]))
        await ends_rightly(hosts[3], answer)


async def test_stop_and_copy_is_one_round(tmp_path: Path, integers: Program, answer: bytes) -> None:
    async with running(tmp_path, integers) as hosts:
        move = Move(
            hosts, integers.image, MEMORY_BYTES, streams=1, export={"mode": "stop-and-copy"}
        )
        here, _ = await move.run()
        assert here["outcome"] == "completed"
        assert [entry["round_no"] for entry in here["report"]["rounds"]] == [0]
        await ends_rightly(hosts[1], answer)


async def test_the_parts_make_up_the_downtime(tmp_path: Path, integers: Program) -> None:
    unnamed_ms = []
    async with running(tmp_path, integers, 4, args=ENDLESS) as hosts:
        for hop in range(3):
            move = Move(hosts[hop:], integers.image, MEMORY_BYTES, generation=hop + 1)
            report = (await move.run())[0]["report"]
            parts = report["downtime_parts_ms"]
            assert list(parts) == [
                "quiesce",
                "last_scan",
                "last_pages",
                "files",
                "prepare",
                "ready",
                "release",
                "token",
                "run",
            ]
            # Both agents share this host's clock.
            assert 0 < report["program_gap_ms"] == report["downtime_ms"] <= report["confirmed_ms"]
            after_parked = sum(parts.values()) - parts["quiesce"]
            assert after_parked <= report["downtime_ms"]
            unnamed_ms.append(report["downtime_ms"] - sum(parts.values()))
    # Others may take the processor between two parts, but not every time.
    assert min(unnamed_ms) <= 20


async def test_receipts_are_signed_by_both_and_agree(tmp_path: Path, integers: Program) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        here, there = await Move(hosts, integers.image, MEMORY_BYTES).run()
        platform = SimPlatform.from_file(None)
        measurement = load(str(integers.image)).measurement(parse(b"").digest())
        cores = []
        for report in (here["report"], there["report"]):
            receipt = report["receipt"]
            claims = platform.verify(receipt["evidence"])
            assert claims.report_data == receipt_data(receipt["body"])
            assert claims.measurement == measurement
            body: dict[str, Any] = msgspec.msgpack.decode(receipt["body"])
            cores.append(body["core"])
            assert body.get("peer_evidence_valid", True)
        assert cores[0] == cores[1]
        core: dict[str, Any] = msgspec.msgpack.decode(cores[0])
        assert core["state_digest"].hex() == here["report"]["state_digest"]


async def test_cancel_in_the_middle_lets_the_program_run_on(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers) as hosts:
        # The streams are never added, so it stays in `active`.
        move = Move(hosts, integers.image, MEMORY_BYTES)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await hosts[1].wait_event("state", 2)
            with pytest.raises(AlreadyMigrating):
                await Move(hosts, integers.image).order_export()
            await hosts[0].request("cancel", migration_id=move.migration_id)
            ended = await hosts[0].wait_event("ended")
            assert (ended["outcome"], ended["error"]["code"]) == ("cancelled", "cancelled")
            ended = await hosts[1].wait_event("ended")
            assert (ended["outcome"], ended["error"]["fields"]["peer_code"]) == (
                "failed",
                "cancelled",
            )
            nursery.cancel_scope.cancel()
        assert await state_of(hosts[0]) == "running"
        await ends_rightly(hosts[0], answer)


async def test_a_second_cancel_does_not_undo_the_first(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers) as hosts:
        # Nobody reads the stream, so the program is parked with its last pages half sent.
        move = Move(
            hosts, integers.image, MEMORY_BYTES, streams=1, export={"mode": "stop-and-copy"}
        )
        ours, unread = socket.socketpair()
        with ours, unread:
            async with trio.open_nursery() as nursery:
                await move.begin(nursery)
                await hosts[0].request(
                    "add_stream", fd=ours.fileno(), migration_id=move.migration_id, index=0
                )
                await eventually(partial(is_in_state, hosts[0], "parked"))
                async with trio.open_nursery() as both:
                    for _ in range(2):
                        both.start_soon(
                            partial(hosts[0].request, "cancel", migration_id=move.migration_id)
                        )
                ended = await hosts[0].wait_event("ended")
                assert (ended["outcome"], ended["error"]["code"]) == ("cancelled", "cancelled")
                nursery.cancel_scope.cancel()
        # Its thread may have to wait for a processor before it says so.
        await eventually(partial(is_in_state, hosts[0], "running"))
        await ends_rightly(hosts[0], answer)


async def test_a_cut_in_the_streams_lets_the_program_run_on(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers) as hosts:
        move = Move(
            hosts,
            integers.image,
            MEMORY_BYTES,
            export={"downtime_limit_ms": 0.0},
            keep_duplicates=True,
        )
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.add_streams()
            await hosts[0].wait_event("round")
            move.cut()
            for host in hosts:
                ended = await host.wait_event("ended")
                assert ended["outcome"] == "failed"
            nursery.cancel_scope.cancel()
        assert await state_of(hosts[0]) == "running"
        await ends_rightly(hosts[0], answer)


async def test_released_and_unanswered_the_source_stays_parked_and_repeats_the_token(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES, deliver_token=False)
        async with trio.open_nursery() as nursery:
            token = await move.up_to_release(nursery)
            with pytest.raises(AlreadyReleased):
                await hosts[0].request("cancel", migration_id=move.migration_id)
            assert await state_of(hosts[0]) == "released"
            assert await state_of(hosts[1]) == "waiting"

            await hosts[0].disconnect()  # the daemon dies, and comes back
            await hosts[0].connect(nursery)
            assert (await hosts[0].wait_event("release", 2))["payload"] == token

            # Nothing but the token starts the destination.
            for wrong in (token[:-1], bytes([token[0] ^ 1]) + token[1:], b""):
                await hosts[1].notify(
                    "token_delivered", migration_id=move.migration_id, payload=wrong
                )
            assert await state_of(hosts[1]) == "waiting"
            for count in (1, 2, 3):  # it may arrive again, and starts the program once
                await hosts[1].notify(
                    "token_delivered", migration_id=move.migration_id, payload=token
                )
                await hosts[1].wait_event("resumed", count)
            assert await state_of(hosts[1]) == "running"
            with pytest.raises(AlreadyReleased):
                await hosts[1].request("cancel", migration_id=move.migration_id)
            ended = await hosts[0].wait_event("ended")
            assert ended["outcome"] == "completed"
            nursery.cancel_scope.cancel()
        await ends_rightly(hosts[1], answer)
        assert sum(event["event"] == "exited" for event in hosts[0].events) == 0


async def test_the_source_waits_as_long_as_it_takes_for_a_true_confirmation(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES, deliver_resumed=False)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.add_streams()
            payload = (await hosts[1].wait_event("resumed"))["payload"]
            forged = payload[:-1] + bytes([payload[-1] ^ 1])
            await hosts[0].notify(
                "resumed_delivered", migration_id=move.migration_id, payload=forged
            )
            assert await state_of(hosts[0]) == "released"
            await hosts[0].notify(
                "resumed_delivered", migration_id=move.migration_id, payload=payload
            )
            assert (await hosts[0].wait_event("ended"))["outcome"] == "completed"
            nursery.cancel_scope.cancel()


async def test_a_daemon_that_dies_before_release_ends_the_move(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await hosts[1].wait_event("state", 2)
            await hosts[0].disconnect()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            await hosts[0].connect(nursery)
            assert await state_of(hosts[0]) == "running"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("direction", ["to_destination", "to_source"])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_changed_session_payload_ends_the_move(
    tmp_path: Path, integers: Program, direction: str, number: int
) -> None:
    seen = 0

    def change(payload: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        if seen == number + 1:
            payload = payload[:-1] + bytes([payload[-1] ^ 1])
        return [payload]

    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        changed: Any = {direction: change}
        move = Move(hosts, integers.image, MEMORY_BYTES, export={"timeout_s": 2.0}, **changed)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            with trio.move_on_after(1):
                await move.add_streams()
            ended = await hosts[0].wait_event("ended")
            assert ended["outcome"] == "failed"
            nursery.cancel_scope.cancel()
        assert await state_of(hosts[0]) == "running"


@pytest.mark.parametrize("on_stall", ["abort", "throttle"])
async def test_a_program_that_writes_too_fast(
    tmp_path: Path, integers: Program, on_stall: str
) -> None:
    """No downtime at all is asked for, so rounds cannot converge: the owner's choice decides."""
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        export = {"downtime_limit_ms": 0.0, "on_stall": on_stall}
        here, _ = await Move(hosts, integers.image, MEMORY_BYTES, export=export).run()
        assert (here["outcome"], here["error"]["code"]) == ("failed", "not-converging")
        assert ("program_held_back" in hosts[0].log()) == (on_stall == "throttle")
        # Whatever held it back has let go: it goes on computing at full speed.
        assert await state_of(hosts[0]) == "running"
        sample = await hosts[0].request("sample_dirty", interval_s=0.3)
        assert sample["written_pages"] > 1000


async def test_memory_that_was_never_used_is_not_written_by_giving_it_back(
    tmp_path: Path, program: Callable[[str], Program]
) -> None:
    mib = 64
    async with running(tmp_path, program("untouched"), args=[str(mib)]) as hosts:
        await eventually(lambda: has_written(hosts[0], b"filled"))
        sample = await hosts[0].request("sample_dirty", interval_s=0.3)
        # At the least the two pages that are used; the page tables around them count as well.
        assert 2 <= sample["written_pages"] < (mib << 8) / 4


async def test_a_policy_without_sim_refuses_sim(tmp_path: Path, integers: Program) -> None:
    policy = b'platforms = ["sgx", "snp"]'
    async with running(tmp_path, integers, args=ENDLESS, policy=policy) as hosts:
        move = Move(hosts, integers.image, MEMORY_BYTES, policy=policy, export={"timeout_s": 5.0})
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            ended = await hosts[0].wait_event("ended")
            assert ended["error"]["code"] == "attestation-failed"
            assert "sgx, snp" in ended["error"]["message"]
            nursery.cancel_scope.cancel()
        assert await state_of(hosts[0]) == "running"


async def test_different_policies_do_not_meet(tmp_path: Path, integers: Program) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        move = Move(
            hosts, integers.image, MEMORY_BYTES, policy=b"debug = true", export={"timeout_s": 5.0}
        )
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            assert (await hosts[0].wait_event("ended"))["outcome"] == "failed"
            nursery.cancel_scope.cancel()
        assert await state_of(hosts[0]) == "running"


async def test_a_dry_run_forecasts_and_moves_nothing(tmp_path: Path, integers: Program) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        move = Move(
            hosts,
            integers.image,
            MEMORY_BYTES,
            export={"dry_run": True},
            receive={"dry_run": True},
        )
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            here = await hosts[0].wait_event("ended")
            there = await hosts[1].wait_event("ended")
            nursery.cancel_scope.cancel()
        assert (here["outcome"], there["outcome"]) == ("checked", "checked")
        assert here["report"]["blockers"] == []
        assert here["report"]["forecast"]["dirty_pages_rate"] > 1000
        assert await state_of(hosts[0]) == "running"


async def test_all_blockers_are_listed_and_nothing_moves(tmp_path: Path, integers: Program) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        own = hosts[0].directory / "own"
        os.mkfifo(own / "fifo")
        (own / "a").touch()
        os.link(own / "a", own / "b")
        async with trio.open_nursery() as nursery:
            await Move(hosts, integers.image, MEMORY_BYTES).begin(nursery)
            ended = await hosts[0].wait_event("ended")
            await hosts[1].wait_event("ended")
            nursery.cancel_scope.cancel()
        assert ended["error"]["code"] == "blocked"
        subjects = {item["subject"] for item in ended["error"]["fields"]["blockers"]}
        assert subjects == {"own:fifo", "own:a", "own:b"}
        assert await state_of(hosts[0]) == "running"
        listed = (await hosts[0].request("status"))["blockers"]
        assert {item["subject"] for item in listed} == subjects


async def test_own_directory_and_input_travel(
    tmp_path: Path, program: Callable[[str], Program]
) -> None:
    files = program("files")
    own = tmp_path / "data"
    own.mkdir()
    native = tmp_path / "native"
    native.mkdir()
    outside = tmp_path / "outside.bin"
    outside.write_bytes(os.urandom(200_000))
    args = ["60000", str(outside)]
    run = await trio.run_process([files.native, *args], cwd=native, capture_stdout=True)
    expected = run.stdout
    with trio.fail_after(40):
        async with agents(tmp_path, 2) as hosts:
            params = launch_params(files.image, args=args, own_dir=str(own))
            await hosts[0].request("launch", **params)
            await trio.sleep(0.3)
            move = Move(
                hosts,
                files.image,
                MEMORY_BYTES,
                receive={"own_dir": str(own)},
                export={"verify": True},
            )
            here, _ = await move.run()
            assert (here["outcome"], here["error"]) == ("completed", None)
            assert (await hosts[1].wait_event("exited"))["exit_status"] == 0
            assert hosts[1].output() == expected
            copies = sorted(path.name for path in (hosts[1].directory / "own").iterdir())
            assert copies == sorted(path.name for path in native.iterdir())


async def test_bad_requests_are_answered_and_harm_nothing(
    tmp_path: Path, integers: Program
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(integers.image.read_bytes()[:1000])
    with trio.fail_after(30):
        async with agents(tmp_path, 1) as (agent,):
            for method, params, code in [
                ("launch", launch_params(broken), "image-invalid"),
                ("launch", launch_params(tmp_path / "absent"), "image-invalid"),
                ("launch", launch_params(integers.image, policy=b"nonsense"), "config"),
                ("launch", launch_params(integers.image, memory_bytes=1 << 20), "runtime-failed"),
                ("launch", launch_params(integers.image, memory_bytes=32 << 20), "runtime-failed"),
                ("launch", launch_params(integers.image, own_dir="/absent"), "enclave"),
                ("launch", {}, "remote-protocol"),
                ("cancel", {"migration_id": bytes(16)}, "enclave"),
                ("sample_dirty", {"interval_s": 1.0}, "enclave"),
                ("stop", {}, "enclave"),
                ("dance", {}, "remote-protocol"),
            ]:
                with pytest.raises(OptmigError) as refused:
                    await agent.request(method, **params)
                assert refused.value.code == code, (method, params)
            assert await state_of(agent) == "booting"
            await agent.request("launch", **launch_params(integers.image, args=["1000"]))
            assert (await agent.wait_event("exited"))["exit_status"] == EXIT_STATUS
            with pytest.raises(EnclaveError, match="already"):
                await agent.request("launch", **launch_params(integers.image))


async def test_garbage_on_the_socket_costs_the_connection_and_nothing_else(
    tmp_path: Path, integers: Program
) -> None:
    async with (
        running(tmp_path, integers, 1, args=ENDLESS) as (agent,),
        trio.open_nursery() as nursery,
    ):
        for garbage in (b"\xff" * 100, b"\0\0\0\5abcde", b"\0\0\0\1\x80"):
            await agent._stream.send_all(garbage)  # type: ignore[union-attr]
            await agent.connect(nursery)
        assert await state_of(agent) == "running"
        nursery.cancel_scope.cancel()


async def test_no_plaintext_and_no_key_in_what_the_host_sees(
    tmp_path: Path, program: Callable[[str], Program]
) -> None:
    marker = b"a secret of 32 bytes in memory!!"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "secret").write_bytes(marker)
    seen = bytearray()

    def spy(payload: bytes) -> list[bytes]:
        seen.extend(payload)
        return [payload]

    keeper = program("keeper").image
    with trio.fail_after(60):
        async with agents(tmp_path, 2) as hosts:
            params = launch_params(keeper, args=["secret", "2"], own_dir=str(tmp_path / "own"))
            await hosts[0].request("launch", **params)
            await eventually(lambda: has_written(hosts[0], b"ready"))
            move = Move(
                hosts,
                keeper,
                MEMORY_BYTES,
                receive={"own_dir": str(tmp_path / "own")},
                to_destination=spy,
                to_source=spy,
            )
            here, _ = await move.run()
            assert here["outcome"] == "completed"
            assert len(seen) > 1000
            assert marker not in seen
            for agent in hosts:
                assert marker.decode() not in agent.log()
            assert (await hosts[1].wait_event("exited"))["exit_status"] == 0


async def test_a_missing_descriptor_is_refused(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with agents(tmp_path, 1) as (agent,), trio.open_nursery() as nursery:
            await agent.send(
                {
                    "id": 1,
                    "method": "add_stream",
                    "params": {"migration_id": bytes(16), "index": 0},
                }
            )
            await agent.connect(nursery)
            assert await state_of(agent) == "booting"
            nursery.cancel_scope.cancel()
