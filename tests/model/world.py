"""What the model of a migration remembers: two shims, two daemons with journals, and the wires.

A world is what all parts hold at one instant. It is a tuple of small values, so that hundreds of
thousands of them can be told apart quickly. What a daemon loses in a crash and what its journal
keeps are different fields.
"""

from typing import NamedTuple

from optmigd.protocol.states import Phase

# Where an instance of the enclave is.
HERE = "here"
"""The agent and the program, running or parked."""
LOST = "lost"
"""The application or the keeper was killed: nothing is left."""
FREED = "freed"
"""The agent has ended the program: it was handed over, or nothing became of it."""
GONE = "gone"
"""The daemon has ended the agent as well."""

# What a daemon is doing. DOWN: it has crashed and was not started again.
DOWN = "down"
DONE = "done"
# Source.
ATTEMPT = "relays the attempt"
WITHDRAW = "asks its agent to withdraw"
AWAIT_END = "waits for the agent's end"
AWAIT_TOKEN = "waits for the agent's token"  # noqa: S105
SETTLE = "tells the destination's daemon"
NOTE_FAILURE = "journals the failure"
NOTE_TOKEN = "journals the token"  # noqa: S105
DELIVER = "delivers the token on the open link"
REDELIVER = "delivers the token again"
CONFIRM = "shows the confirmation to its agent"
NOTE_DEPARTURE = "journals the departure"
NOTE_MOVED = "journals the departure of the instance"
CLEAR = "ends the agent of the enclave that has left"
# Destination.
CONVERSE = "relays the arrival"
WAIT = "waits for the token"
FAIL = "journals that nothing came of the arrival"
DESTROY = "destroys the instance"
ASK = "asks the source how it ended"
FINISH = "journals the arrival"

# Frames from an agent to its daemon.
RELEASE = "release"
ENDED_FAILED = "ended: failed"
ENDED_CANCELLED = "ended: cancelled"
ENDED_COMPLETED = "ended: completed"
ANSWER_FRAME = "state: active, session: answer"
SWITCHOVER = "state: switchover"
REFUSAL_FRAME = "session: refusal"
RESUMED_FRAME = "resumed"
CONNECTION_LOST = "connection lost"

# Messages between the hosts. A message that was sent may arrive at any time, any number of times,
# or never, as long as its receiver still listens to the conversation it belongs to. No daemon sees
# MANIFEST and READY: they go from shim to shim. The source's daemon sends the token twice: to the
# other daemon, and on a data stream to the shim there.
PROPOSAL, ANSWER, MANIFEST, READY, SOURCE_REFUSAL, DESTINATION_REFUSAL = (1 << n for n in range(6))
ABORT_TO_DESTINATION, ABORT_TO_SOURCE, TOKEN, RESUMED = (1 << n for n in range(6, 10))
TOKEN_AGAIN, RESUMED_AGAIN, SAID_NO_TOKEN, OFFER_AGAIN = (1 << n for n in range(10, 14))
TOKEN_ON_STREAM = 1 << 14

RIGHT_TOKEN = "token"  # noqa: S105
OLD_TOKEN = "token of an earlier migration"  # noqa: S105


class World(NamedTuple):
    """One instant."""

    # The source's shim, and what its daemon has not read yet.
    s_phase: str = Phase.SETUP.value
    s_runs: bool = True
    s_place: str = HERE
    s_connected: bool = True
    s_frames: tuple[str, ...] = ()
    s_restarted: bool = False
    # The destination's.
    d_phase: str = Phase.SETUP.value
    d_runs: bool = False
    d_place: str = HERE
    d_connected: bool = True
    d_frames: tuple[str, ...] = ()
    d_restarted: bool = False
    d_token: str = ""
    d_starts: int = 0
    d_confirmed: bool = False
    # The source's daemon: memory, then journal.
    s_daemon: str = ATTEMPT
    s_why: str = "failed"
    s_token: bool = False
    s_link: bool = True
    s_row: str = "active"
    s_row_token: bool = False
    s_instance: str = "running"
    # The destination's daemon: memory, then journal.
    d_daemon: str = CONVERSE
    d_link: bool = True
    d_token_given: bool = False
    d_aborted: bool = False
    d_ended: bool = False
    d_ready_possible: bool = False
    d_row: str = "active"
    d_row_resumed: bool = False
    d_instance: str = "incoming"
    # Between them.
    link_up: bool = True
    wire: int = 0
    # What has befallen it.
    faults: tuple[int, ...] = ()
    excused: str = ""
    freed_early: str = ""


PEER = b"peer"


class Entry(NamedTuple):
    """A journal row as the daemon's decisions see it."""

    role: str
    state: str
    token: bytes | None = None
    resumed: bytes | None = None
    peer_key: bytes = PEER


def source_entry(world: World) -> Entry:
    """Return what the source's journal holds."""
    return Entry("source", world.s_row, b"token" if world.s_row_token else None)


def destination_entry(world: World) -> Entry:
    """Return what the destination's journal holds."""
    return Entry("destination", world.d_row, None, b"resumed" if world.d_row_resumed else None)
