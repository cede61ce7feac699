"""A daemon's decisions about interrupted migrations, over everything that a journal can hold.

What they mean together is explored in `tests/model`; here is what each promises by itself.
"""

from dataclasses import dataclass
from itertools import product

import pytest

from optmigd.protocol.recovery import (
    Fate,
    Outcome,
    answer_outcome,
    closing_state,
    fate_at_start,
    last_word,
    needs_last_word,
    stops_waiting,
    stored_confirmation,
)

PEER, STRANGER = b"p" * 32, b"s" * 32
LIVE = ("starting", "incoming", "running")
STATES = (*LIVE, "exited", "moved", "lost")


@dataclass(frozen=True)
class Row:
    role: str
    state: str
    token: bytes | None
    resumed: bytes | None
    peer_key: bytes = PEER


ROWS = [
    Row(*values)
    for values in product(
        ("source", "destination"),
        ("active", "completed", "failed", "cancelled"),
        (None, b"token"),
        (None, b"resumed"),
    )
]


@pytest.mark.parametrize("row", ROWS)
def test_a_stranger_learns_nothing_of_a_migration(row: Row) -> None:
    assert answer_outcome(row, STRANGER) is Outcome.FAILED
    assert stored_confirmation(row, STRANGER) is None


@pytest.mark.parametrize("row", [row for row in ROWS if row.role == "source"])
def test_only_a_source_that_has_ended_says_so(row: Row) -> None:
    expected = {
        "completed": Outcome.COMPLETED,
        "failed": Outcome.FAILED,
        "cancelled": Outcome.CANCELLED,
        "active": Outcome.PENDING if row.token is None else Outcome.RELEASED,
    }
    assert answer_outcome(row, PEER) is expected[row.state]
    assert stored_confirmation(row, PEER) is None


@pytest.mark.parametrize("row", [row for row in ROWS if row.role == "destination"])
def test_a_destination_answers_with_what_it_has(row: Row) -> None:
    assert stored_confirmation(row, PEER) == row.resumed
    assert answer_outcome(row, PEER) is Outcome.FAILED
    assert closing_state(row) == ("failed" if row.resumed is None else "completed")


@pytest.mark.parametrize("row", ROWS)
def test_the_source_names_every_end_of_which_the_destination_has_nothing(row: Row) -> None:
    assert needs_last_word(row) == (row.role == "destination" and row.resumed is None)


@pytest.mark.parametrize("row", [row for row in ROWS if row.role == "source"])
def test_the_last_word_is_the_sources_journal(row: Row) -> None:
    """Only one that was released, and can arrive no more, is named before the source has ended."""
    answer = answer_outcome(row, PEER)
    assert stops_waiting(answer.value) == (row.state in ("failed", "cancelled"))
    if row.state in ("failed", "cancelled"):
        assert last_word(answer.value) == row.state
    elif row.state == "active":
        assert last_word(answer.value) == (None if row.token is None else "failed")


def test_what_is_unknown_has_failed() -> None:
    assert answer_outcome(None, PEER) is Outcome.FAILED
    assert stored_confirmation(None, PEER) is None


@pytest.mark.parametrize("row", [None, *ROWS])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("alive", [False, True])
def test_nothing_that_may_hold_the_enclave_is_destroyed(
    row: Row | None, state: str, alive: bool
) -> None:
    fate = fate_at_start(state, row, agent_alive=alive)
    assert (fate is Fate.LEFTOVER) == (state not in LIVE)
    if state == "running" or (state == "incoming" and row is not None):
        assert not alive or fate is Fate.KEEP
    if state == "running" and row is not None and row.token is not None:
        assert fate is Fate.KEEP
