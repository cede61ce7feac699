"""What a daemon decides about an interrupted migration: both roles, every decision in one place.

The shims decide the hand-off itself (`states.py`). What is left to the daemons is small, and all of
the enclave's safety that is not in the shims hangs on it: what to do at the start with what the
journal holds, what to answer a destination that asks what became of its migration, when a waiting
instance may be destroyed. The daemon acts on these functions and `tests/model` explores them
together with the table of the shims, so what is checked is what runs.

All functions are total and pure. A *row* is what the journal holds of one migration; None means
that it holds nothing.
"""

from enum import Enum
from typing import Protocol


class MigrationEntry(Protocol):
    """What the journal holds of one migration, as far as these decisions need it."""

    @property
    def role(self) -> str:
        """Of this host: `source` or `destination`."""

    @property
    def peer_key(self) -> bytes:
        """The other host."""

    @property
    def state(self) -> str:
        """`active`, `unsettled`, or how it has ended: `completed`, `failed`, `cancelled`."""

    @property
    def token(self) -> bytes | None:
        """Source: the token, once the shim has released."""

    @property
    def resumed(self) -> bytes | None:
        """The confirmation that the enclave runs at the destination, once it is known."""


UNSETTLED = "unsettled"
"""State of a row at a destination: nothing came of it here, and the source is to say how it ended.

Such a row belongs to no instance any more: an instance's number may be in use again.
"""


class Outcome(Enum):
    """What a source tells a destination that asks what became of its migration."""

    PENDING = "pending"
    RELEASED = "released"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Fate(Enum):
    """What a starting daemon does with an instance that the journal names."""

    KEEP = "supervise it, and take up its interrupted migration if there is one"
    LOST = "its agent has gone, and the program with it: note that, and end its migration"
    REMOVE = "nobody was ever told that it exists: destroy it, and close its migration"
    LEFTOVER = "the enclave is not here any more: end what is left of its agent"


def fate_at_start(instance_state: str, row: MigrationEntry | None, *, agent_alive: bool) -> Fate:
    """Decide what becomes of an instance when a daemon starts.

    Args:
        instance_state: as journaled: `starting`, `incoming`, `running`, `exited`, `moved` or
            `lost`.
        row: its interrupted migration.
        agent_alive: whether its shim agent still runs.
    """
    if instance_state in ("exited", "moved", "lost"):
        return Fate.LEFTOVER
    if instance_state == "starting":
        return Fate.REMOVE
    if instance_state == "incoming" and (row is None or not agent_alive):
        return Fate.REMOVE
    if agent_alive or (row is not None and row.token is not None):
        return Fate.KEEP
    return Fate.LOST


def closing_state(row: MigrationEntry) -> str:
    """Return how an interrupted migration has ended of which no instance is left.

    Not for one that `needs_last_word`.
    """
    return "completed" if row.resumed is not None else "failed"


def must_deliver(token: bytes | None) -> bool:
    """Whether the source is past the point of no return, so that it may only deliver."""
    return token is not None


def exit_ends_enclave(*, released: bool) -> bool:
    """Whether the end of this host's program is the enclave's: not after it was let go."""
    return not released


def answer_outcome(row: MigrationEntry | None, asker: bytes) -> Outcome:
    """Tell a destination whether a token may still come.

    Args:
        row: the migration that it asks about.
        asker: its host key.
    """
    if row is None or row.role != "source" or row.peer_key != asker:
        return Outcome.FAILED
    if row.state == "completed":
        return Outcome.COMPLETED
    if row.state in ("failed", "cancelled"):
        return Outcome(row.state)
    return Outcome.RELEASED if must_deliver(row.token) else Outcome.PENDING


def stored_confirmation(row: MigrationEntry | None, asker: bytes) -> bytes | None:
    """Return what answers a repeated token of a migration that is over here.

    None: nothing here can be started by it, and nothing runs.

    Args:
        row: the migration that the token belongs to.
        asker: the host key of whoever delivers it.
    """
    if row is None or row.role != "destination" or row.peer_key != asker:
        return None
    return row.resumed


def ready_possible(state: str) -> bool:
    """Whether an agent that has told this state may say READY before its daemon hears more of it.

    READY goes past the daemon, on a data stream. What the daemon relays is the answer to the
    proposal, without which the source sends nothing, and `active` comes before that.

    Args:
        state: as the agent of an arrival has told last.
    """
    return state in ("active", "switchover")


def may_be_released(
    *, ready_possible: bool, token_given: bool, aborted: bool, ended: bool, agent_alive: bool
) -> bool:
    """Whether the source may have let go of the enclave in favour of an instance here.

    Args:
        ready_possible: the agent may have told the source that it is ready.
        token_given: the agent has been given a token.
        aborted: the source has said that this migration came to nothing.
        ended: the agent has ended the migration, and not because the enclave runs here.
        agent_alive: there is an agent.
    """
    return (ready_possible or token_given) and not aborted and not ended and agent_alive


def heeds_abort(*, token_given: bool) -> bool:
    """Whether a destination gives up when the source's daemon says so: not once it has a token."""
    return not token_given


def gives_way(*, token_given: bool, owned: bool) -> bool:
    """Whether an arrival gives way to a new offer of the same enclave by the same host."""
    return not token_given and not owned


def takes_token(*, aborted: bool) -> bool:
    """Whether a token is handed to the agent: not after the source said there would be none."""
    return not aborted


def stops_waiting(answer: str) -> bool:
    """Whether the source's answer to `outcome` ends the wait for a token.

    The shim has the last word: it is asked to cancel, and refuses once it has taken the token.
    """
    return answer in (Outcome.FAILED.value, Outcome.CANCELLED.value)


def last_word(answer: str) -> str | None:
    """Return how a migration has ended of which nothing is left at the destination.

    A source that has released delivers in vain: all that can end it there is that an operator gives
    the delivery up, and then it has failed on both sides.

    Args:
        answer: the source's to `outcome`.

    Returns:
        `cancelled` or `failed`; None while the source has not decided: it is to be asked again.
    """
    if answer == Outcome.PENDING.value:
        return None
    return "cancelled" if answer == Outcome.CANCELLED.value else "failed"


def needs_last_word(row: MigrationEntry) -> bool:
    """Whether an interrupted migration of which no instance is left is the source's to name."""
    return row.role == "destination" and row.resumed is None
