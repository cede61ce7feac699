"""When the source collects: what it decides by is what is dirty when the round is confirmed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio

from optmigd.enclave_shim.arena import Arena, Runs, as_runs
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.migration import rounds as rounds_module
from optmigd.enclave_shim.migration.rounds import STALE_S, Rounds
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.session import RoundDone


class Busy:
    """A tracker of a program that writes another page before every collection."""

    name = "busy"
    gave_back = False

    def __init__(self) -> None:
        self.collections = 0
        self.collected = threading.Event()

    def arm(self) -> None: ...

    def collect(self, *, parked: bool = False) -> Runs:
        self.collections += 1
        self.collected.set()
        return as_runs(np.array([self.collections * 2]), np.array([1]))

    def disarm(self) -> None: ...


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(16 << 20)
    arena.pages[:] = 1
    yield arena
    arena.close()


@pytest.mark.parametrize(("stale_s", "collections"), [(60.0, 1), (STALE_S, 2)])
async def test_a_confirmation_that_takes_its_time_is_followed_by_another_collection(
    arena: Arena,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stale_s: float,
    collections: int,
) -> None:
    monkeypatch.setattr(rounds_module, "STALE_S", stale_s)
    tracker = Busy()
    rounds = Rounds(arena, [], TravellingFiles(tmp_path, {}, 4096), tracker)

    async def confirm() -> RoundDone:
        await trio.to_thread.run_sync(tracker.collected.wait)
        await trio.sleep(20 * STALE_S)  # it is the wait that is asked about
        return RoundDone(-1, 0, 0, rounds.chain)

    await rounds.collect_while_confirmed(confirm)
    assert tracker.collections == rounds.dirty_pages == collections


async def test_a_wrong_account_of_a_round_is_refused(arena: Arena, tmp_path: Path) -> None:
    rounds = Rounds(arena, [], TravellingFiles(tmp_path, {}, 4096), Busy())

    async def confirm() -> RoundDone:
        return RoundDone(-1, 1, 0, rounds.chain)

    with pytest.raises(ExceptionGroup) as caught:
        await rounds.collect_while_confirmed(confirm)
    assert caught.group_contains(RemoteProtocolError, match="account")
