"""Defences that no other test would miss: each of these fails when its own is removed.

`defences.py` says which is which.
"""

import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
import trio

from optmigd.bench.programs import Program
from optmigd.daemon.journal import Journal
from optmigd.enclave_shim import connection
from optmigd.enclave_shim.migration.arrival import Arrival
from optmigd.enclave_shim.migration.common import Binding, ReceiveOrders
from optmigd.enclave_shim.migration.departure import Departure
from optmigd.enclave_shim.migration.proposal import check_proposal
from optmigd.enclave_shim.preflight import DigestCache
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.handoff import Migration, Phase, Role
from optmigd.protocol.session import Manifest, ResumedReport
from tests.agent.test_migration import ENDLESS, MEMORY_BYTES
from tests.channel.test_session import PROPOSAL
from tests.support.agents import AgentHandle, Move, launch_params

BINDING = Binding(b"m" * 16, b"a" * 32, b"b" * 32)
ORDERS = ReceiveOrders(
    binding=BINDING,
    generation=PROPOSAL.generation,
    memory_bytes=PROPOSAL.arena_bytes,
    streams=PROPOSAL.streams,
    dry_run=False,
    virtual_dir=PROPOSAL.own_dir,
)
FULL = 2


async def test_the_journal_waits_for_the_disk(tmp_path: Path) -> None:
    """SQLite's word for it: in WAL mode, FULL syncs at every commit, NORMAL does not."""
    journal = await Journal.open(tmp_path / "journal.db")
    try:
        assert journal._connection.execute("PRAGMA synchronous").fetchone() == (FULL,)
        assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        await journal.close()


class OpenSeals:
    """Seals under which every confirmation opens."""

    def __init__(self, report: ResumedReport) -> None:
        self._report = report

    def open_resumed(self, _: bytes) -> ResumedReport:
        """Return the confirmation."""
        return self._report


@pytest.mark.parametrize(
    ("migration_id", "generation"), [(BINDING.migration_id, 1), (b"x" * 16, 2)]
)
async def test_a_confirmation_of_another_generation_frees_nothing(
    migration_id: bytes, generation: int
) -> None:
    migration = Migration(Role.SOURCE)
    migration.phase = Phase.RELEASED
    report = ResumedReport(migration_id, generation, {}, 0, b"")
    anything = cast("Any", SimpleNamespace(resumed=lambda _: None))
    departure = Departure(
        cast("Any", SimpleNamespace(generation=1)),
        BINDING,
        migration,
        b"token",
        cast("Any", OpenSeals(report)),
        anything,
        anything,
        0.0,
        anything,
        anything,
        structlog.get_logger(),
    )
    with pytest.raises(RemoteProtocolError, match="another migration or generation"):
        await departure.resumed_delivered(b"confirmation")
    assert migration.phase is Phase.RELEASED


@pytest.mark.parametrize(
    "changes", [{"round_no": 1}, {"records": 1}, {"pages": 1}, {"chain": b"x" * 32}]
)
def test_a_manifest_must_fit_what_arrived(changes: dict[str, Any]) -> None:
    arrival = Arrival(cast("Any", None), ORDERS, Migration(Role.DESTINATION), live=True)
    fitting: dict[str, Any] = {"round_no": -1, "records": 0, "pages": 0, "chain": arrival.chain}
    rest: dict[str, Any] = {
        "generation": 2,
        "files": [],
        "parked_real_ns": 0,
        "arena_digest": b"",
    }
    assert arrival.fits(Manifest(**fitting, **rest))
    assert not arrival.fits(Manifest(**fitting | changes, **rest))


@pytest.mark.parametrize(
    "changes", [{"memory_bytes": 4096}, {"streams": 1}, {"generation": 9}, {"virtual_dir": "/x"}]
)
def test_a_proposal_must_be_what_was_offered(changes: dict[str, Any]) -> None:
    offered = {name: getattr(ORDERS, name) for name in ORDERS.__dataclass_fields__}
    orders = ReceiveOrders(**offered | changes)
    with pytest.raises(RemoteProtocolError, match="something else than its daemon offered"):
        check_proposal(PROPOSAL, orders, DigestCache())


class Connection:
    """A connection whose other end belongs to some user, as the kernel would say."""

    def __init__(self, uid: int) -> None:
        self._credentials = struct.pack("iII", 1, uid, uid)

    def getsockopt(self, *_: int) -> bytes:
        """Return process, user and group."""
        return self._credentials


def test_another_user_is_no_daemon() -> None:
    def trusted(uid: int) -> bool:
        return connection._is_trusted(cast("Any", Connection(uid)))

    assert trusted(os.geteuid())
    assert trusted(0)
    assert not trusted(os.geteuid() + 1)


async def _move_with(
    tmp_path: Path, integers: Program, source: str, destination: str
) -> tuple[list[AgentHandle], Move]:
    hosts = []
    for number, how in enumerate((source, destination)):
        directory = tmp_path / f"agent{number}"
        directory.mkdir(mode=0o700)
        handle = AgentHandle(directory)
        hosts.append(handle)
        module = ("tests.mutation.faithless_agent", how) if how else ("optmigd.enclave_shim",)
        handle.start(module=module)
    return hosts, Move(hosts, integers.image, MEMORY_BYTES, deliver_token=False)


async def test_a_released_process_never_runs_again(tmp_path: Path, integers: Program) -> None:
    """An agent that wakes a released program ends it: the runtime keeps the agent's word."""
    hosts, move = await _move_with(tmp_path, integers, "resumes", "")
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for host in hosts:
                    await host.connect(nursery)
                params = launch_params(integers.image, args=ENDLESS)
                pid = (await hosts[0].request("launch", **params))["pid"]
                await move.up_to_release(nursery)
                with trio.fail_after(20):
                    while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240
                        await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
    finally:
        for host in hosts:
            host.kill()


async def test_a_ready_with_another_digest_releases_nothing(
    tmp_path: Path, integers: Program
) -> None:
    hosts, move = await _move_with(tmp_path, integers, "", "lies")
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for host in hosts:
                    await host.connect(nursery)
                await hosts[0].request("launch", **launch_params(integers.image, args=ENDLESS))
                await move.begin(nursery)
                await move.add_streams()
                ended = await hosts[0].wait_event("ended")
                assert ended["outcome"] == "failed"
                assert "another state than was sent" in ended["error"]["message"]
                assert await hosts[0].runs()
                assert not [item for item in hosts[0].events if item["event"] == "release"]
                nursery.cancel_scope.cancel()
    finally:
        for host in hosts:
            host.kill()
