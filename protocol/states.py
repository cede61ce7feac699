"""The table of every legal transition of a migration, for both roles.

This is the file to read to know what may happen when. It holds a table and knows no I/O; the file
that walks the table (`handoff.py`) knows no role. A *state* is the name that people and programs
see (QEMU's); inside `switchover` there are several *phases*, because the hand-off's safety hangs on
their order. The diagrams and tables in `docs/protocol.md` are generated from here.

The rule that the table keeps: at any instant at most one instance may execute. The source stops
being allowed to at `QUIESCED` and is allowed again only on paths that never come to `released`; the
destination is allowed from `TOKEN_ACCEPTED` on, and the token leaves the source only in
`released`, which nothing but completion leaves.
"""

# A phase called "awaiting-token" is no password.
# ruff: noqa: S105

from collections.abc import Iterable, Mapping
from enum import Enum


class Role(Enum):
    """Which side of a migration an instance is on."""

    SOURCE = "source"
    DESTINATION = "destination"


class State(Enum):
    """What people and programs see."""

    SETUP = "setup"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    SWITCHOVER = "switchover"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Phase(Enum):
    """Where exactly a migration is; `STATE_OF` gives its state."""

    SETUP = "setup"
    ACTIVE = "active"
    QUIESCING = "quiescing"
    SENDING_LAST = "sending-last"
    AWAITING_READY = "awaiting-ready"
    RELEASING = "releasing"
    RELEASED = "released"
    PLACING = "placing"
    AWAITING_TOKEN = "awaiting-token"
    STARTING = "starting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


STATE_OF: Mapping[Phase, State] = {
    Phase.SETUP: State.SETUP,
    Phase.ACTIVE: State.ACTIVE,
    Phase.QUIESCING: State.PRE_SWITCHOVER,
    Phase.SENDING_LAST: State.SWITCHOVER,
    Phase.AWAITING_READY: State.SWITCHOVER,
    Phase.RELEASING: State.SWITCHOVER,
    Phase.RELEASED: State.SWITCHOVER,
    Phase.PLACING: State.SWITCHOVER,
    Phase.AWAITING_TOKEN: State.SWITCHOVER,
    Phase.STARTING: State.SWITCHOVER,
    Phase.COMPLETED: State.COMPLETED,
    Phase.FAILED: State.FAILED,
    Phase.CANCELLING: State.CANCELLING,
    Phase.CANCELLED: State.CANCELLED,
}


class Event(Enum):
    """What happens to a migration. `REMOTE_EVENTS` are those that the peer causes."""

    # Source.
    ACCEPTED = "the destination has accepted the proposal"
    ROUND_DONE = "the destination has confirmed a round"
    CONVERGED = "the decision is to switch over"
    QUIESCED = "every thread is parked"
    MANIFEST_SENT = "the last pages and the manifest are sent"
    READY_EQUAL = "READY came with the same digest"
    READY_DIFFERS = "READY came with another digest"
    TOKEN_MADE = "the token is sealed and this instance can never run again"
    RESUMED_RECEIVED = "the destination has confirmed that it runs"
    UNWOUND = "after a cancel: streams are stopped and the program runs on"
    # Destination.
    OFFERED = "the proposal is acceptable and was answered"
    ROUND_RECEIVED = "a round has arrived whole on every stream"
    MANIFEST_EQUAL = "the manifest fits what arrived"
    MANIFEST_DIFFERS = "the manifest does not fit what arrived"
    PREPARED = "the process waits at its restore point, nothing is missing"
    TOKEN_ACCEPTED = "a token for this instance, digest and generation arrived"
    RUNNING = "the program runs here"
    # Both.
    PEER_REFUSED = "the peer's shim says, sealed, that it has given up"
    CANCEL = "somebody here wants the migration to end"
    FAULT = "something failed here"
    TIMEOUT = "it took too long"
    LINK_LOST = "the link or a data stream broke"
    RECONNECTED = "a new connection to the daemon stands"


REMOTE_EVENTS = frozenset(
    {
        Event.ACCEPTED,
        Event.ROUND_DONE,
        Event.READY_EQUAL,
        Event.READY_DIFFERS,
        Event.RESUMED_RECEIVED,
        Event.OFFERED,
        Event.ROUND_RECEIVED,
        Event.MANIFEST_EQUAL,
        Event.MANIFEST_DIFFERS,
        Event.TOKEN_ACCEPTED,
        Event.PEER_REFUSED,
    }
)


class Action(Enum):
    """What the shim has to do after a transition, in the order given."""

    QUIESCE = "park every thread"
    SEND_LAST_PAGES = "send the last dirty pages"
    SEND_MANIFEST = "send the manifest"
    SEAL_TOKEN = "make this instance unable to run again and seal the token"
    SEND_TOKEN = "let the token out, journalled first; again if it was out before"
    RESUME_SOURCE = "let the program run on here"
    FREE_SOURCE = "free the memory, end the process"
    DESTROY_DESTINATION = "source: tell the destination to give up; destination: destroy itself"
    PREPARE = "place everything and bring the process to its restore point"
    SEND_READY = "send READY with this side's digest"
    SEND_REFUSAL = "tell the source that this side has given up"
    RUN = "let the program run here"
    SEND_RESUMED = "confirm; the same bytes each time"
    ASK_SOURCE = "ask the source's daemon what became of the migration"


Key = tuple[Role, Phase, Event]
Step = tuple[Phase, tuple[Action, ...]]


# Nobody can keep these from happening at any time.
_ALWAYS_POSSIBLE = (Event.PEER_REFUSED, Event.LINK_LOST, Event.RECONNECTED, Event.TIMEOUT)


def _source() -> Iterable[tuple[Phase, Event, Phase, tuple[Action, ...]]]:
    yield Phase.SETUP, Event.ACCEPTED, Phase.ACTIVE, ()
    yield Phase.ACTIVE, Event.ROUND_DONE, Phase.ACTIVE, ()
    yield Phase.ACTIVE, Event.CONVERGED, Phase.QUIESCING, (Action.QUIESCE,)
    # A round's confirmation may arrive after the decision was taken.
    yield Phase.QUIESCING, Event.ROUND_DONE, Phase.QUIESCING, ()
    yield (
        Phase.QUIESCING,
        Event.QUIESCED,
        Phase.SENDING_LAST,
        (Action.SEND_LAST_PAGES, Action.SEND_MANIFEST),
    )
    yield Phase.SENDING_LAST, Event.ROUND_DONE, Phase.SENDING_LAST, ()
    yield Phase.SENDING_LAST, Event.MANIFEST_SENT, Phase.AWAITING_READY, ()
    yield Phase.AWAITING_READY, Event.ROUND_DONE, Phase.AWAITING_READY, ()
    yield Phase.AWAITING_READY, Event.READY_EQUAL, Phase.RELEASING, (Action.SEAL_TOKEN,)
    yield Phase.RELEASING, Event.TOKEN_MADE, Phase.RELEASED, (Action.SEND_TOKEN,)
    yield Phase.RELEASED, Event.RESUMED_RECEIVED, Phase.COMPLETED, (Action.FREE_SOURCE,)

    # Before the point of no return every failure and every cancel ends with the program running
    # here. Afterwards none does: the token is delivered again.
    tell = (Action.DESTROY_DESTINATION,)
    resume = (Action.RESUME_SOURCE, Action.DESTROY_DESTINATION)
    for phase, actions in (
        (Phase.SETUP, tell),
        (Phase.ACTIVE, tell),
        (Phase.QUIESCING, resume),
        (Phase.SENDING_LAST, resume),
        (Phase.AWAITING_READY, resume),
        (Phase.RELEASING, resume),
    ):
        yield phase, Event.CANCEL, Phase.CANCELLING, actions
        yield phase, Event.RECONNECTED, phase, ()
        for event in (Event.FAULT, Event.TIMEOUT, Event.LINK_LOST, Event.PEER_REFUSED):
            yield phase, event, Phase.FAILED, actions
    yield Phase.AWAITING_READY, Event.READY_DIFFERS, Phase.FAILED, resume
    for event in (Event.FAULT, Event.LINK_LOST, Event.PEER_REFUSED):
        yield Phase.RELEASED, event, Phase.RELEASED, ()
    for event in (Event.TIMEOUT, Event.RECONNECTED):
        yield Phase.RELEASED, event, Phase.RELEASED, (Action.SEND_TOKEN,)

    yield Phase.CANCELLING, Event.UNWOUND, Phase.CANCELLED, ()
    yield Phase.CANCELLING, Event.FAULT, Phase.FAILED, ()
    for phase in (Phase.FAILED, Phase.CANCELLED):
        yield phase, Event.FAULT, phase, ()
    # Messages that were under way when this side gave up mean nothing any more.
    late = (Event.ACCEPTED, Event.ROUND_DONE, Event.READY_EQUAL, Event.READY_DIFFERS)
    for phase in (Phase.CANCELLING, Phase.CANCELLED, Phase.FAILED):
        for event in (*late, *_ALWAYS_POSSIBLE, Event.CANCEL):
            yield phase, event, phase, ()
    for event in (*_ALWAYS_POSSIBLE, Event.RESUMED_RECEIVED, Event.FAULT):
        yield Phase.COMPLETED, event, Phase.COMPLETED, ()


def _destination() -> Iterable[tuple[Phase, Event, Phase, tuple[Action, ...]]]:
    yield Phase.SETUP, Event.OFFERED, Phase.ACTIVE, ()
    yield Phase.ACTIVE, Event.ROUND_RECEIVED, Phase.ACTIVE, ()
    yield Phase.ACTIVE, Event.MANIFEST_EQUAL, Phase.PLACING, (Action.PREPARE,)
    yield Phase.PLACING, Event.PREPARED, Phase.AWAITING_TOKEN, (Action.SEND_READY,)
    yield Phase.AWAITING_TOKEN, Event.TOKEN_ACCEPTED, Phase.STARTING, (Action.RUN,)
    yield Phase.STARTING, Event.RUNNING, Phase.COMPLETED, (Action.SEND_RESUMED,)
    # The token may arrive again: it is answered again and starts nothing.
    yield Phase.STARTING, Event.TOKEN_ACCEPTED, Phase.STARTING, ()
    yield Phase.COMPLETED, Event.TOKEN_ACCEPTED, Phase.COMPLETED, (Action.SEND_RESUMED,)

    destroy = (Action.DESTROY_DESTINATION,)
    refuse = (Action.SEND_REFUSAL, Action.DESTROY_DESTINATION)
    for phase in (Phase.SETUP, Phase.ACTIVE, Phase.PLACING):
        yield phase, Event.CANCEL, Phase.CANCELLED, refuse
        yield phase, Event.PEER_REFUSED, Phase.FAILED, destroy
        yield phase, Event.LINK_LOST, Phase.FAILED, destroy
        yield phase, Event.RECONNECTED, phase, ()
        for event in (Event.FAULT, Event.TIMEOUT):
            yield phase, event, Phase.FAILED, refuse
    yield Phase.ACTIVE, Event.MANIFEST_DIFFERS, Phase.FAILED, refuse
    # After READY the source may be past the point of no return, and then this is the only
    # instance: silence alone destroys nothing. CANCEL here means that the daemon has asked.
    for event in (Event.LINK_LOST, Event.TIMEOUT, Event.RECONNECTED):
        yield Phase.AWAITING_TOKEN, event, Phase.AWAITING_TOKEN, (Action.ASK_SOURCE,)
    yield Phase.AWAITING_TOKEN, Event.PEER_REFUSED, Phase.FAILED, destroy
    yield Phase.AWAITING_TOKEN, Event.CANCEL, Phase.CANCELLED, refuse
    yield Phase.AWAITING_TOKEN, Event.FAULT, Phase.FAILED, refuse
    yield Phase.STARTING, Event.FAULT, Phase.FAILED, destroy

    for event in (Event.LINK_LOST, Event.TIMEOUT):
        yield Phase.STARTING, event, Phase.STARTING, ()
        yield Phase.COMPLETED, event, Phase.COMPLETED, ()
    yield Phase.COMPLETED, Event.FAULT, Phase.COMPLETED, ()
    yield Phase.STARTING, Event.RECONNECTED, Phase.STARTING, ()
    yield Phase.COMPLETED, Event.RECONNECTED, Phase.COMPLETED, (Action.SEND_RESUMED,)
    late = (Event.OFFERED, Event.ROUND_RECEIVED, Event.MANIFEST_EQUAL, Event.MANIFEST_DIFFERS)
    for phase in (Phase.CANCELLED, Phase.FAILED):
        for event in (*late, *_ALWAYS_POSSIBLE, Event.CANCEL, Event.FAULT):
            yield phase, event, phase, ()


def _table() -> dict[Key, Step]:
    table: dict[Key, Step] = {}
    for role, rows in ((Role.SOURCE, _source()), (Role.DESTINATION, _destination())):
        for phase, event, then, actions in rows:
            if (role, phase, event) in table:
                raise ValueError(f"two transitions for {role}, {phase}, {event}")
            table[role, phase, event] = (then, actions)
    return table


TRANSITIONS: Mapping[Key, Step] = _table()

MAY_RUN = frozenset(
    {
        (Role.SOURCE, Phase.SETUP),
        (Role.SOURCE, Phase.ACTIVE),
        (Role.SOURCE, Phase.QUIESCING),
        (Role.SOURCE, Phase.CANCELLING),
        (Role.SOURCE, Phase.CANCELLED),
        (Role.SOURCE, Phase.FAILED),
        (Role.DESTINATION, Phase.STARTING),
        (Role.DESTINATION, Phase.COMPLETED),
    }
)

# From here on only completion is left; a cancel is refused with `AlreadyReleased`.
RELEASED = frozenset(
    {
        (Role.SOURCE, Phase.RELEASED),
        (Role.SOURCE, Phase.COMPLETED),
        (Role.DESTINATION, Phase.STARTING),
        (Role.DESTINATION, Phase.COMPLETED),
    }
)

ENDED = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED})


def render_diagram(role: Role) -> str:
    """Return the role's state diagram as mermaid text; steps that change nothing are left out."""
    lines = ["stateDiagram-v2", f"    [*] --> {_node(Phase.SETUP)}"]
    phases = [phase for phase in Phase if any(key[:2] == (role, phase) for key in TRANSITIONS)]
    for phase in phases:
        marks = ", may run" if (role, phase) in MAY_RUN else ""
        lines.append(f"    {_node(phase)}: {phase.value} ({STATE_OF[phase].value}{marks})")
    arrows: dict[tuple[Phase, Phase, tuple[Action, ...]], list[str]] = {}
    for (its_role, phase, event), (then, actions) in TRANSITIONS.items():
        if its_role is role and (phase is not then or actions):
            arrows.setdefault((phase, then, actions), []).append(event.name)
    for (phase, then, actions), events in arrows.items():
        label = " or ".join(events)
        if actions:
            label += " / " + ", ".join(action.name for action in actions)
        lines.append(f"    {_node(phase)} --> {_node(then)}: {label}")
    lines += [f"    {_node(phase)} --> [*]" for phase in phases if phase in ENDED]
    return "\n".join(lines) + "\n"


def render_table(role: Role) -> str:
    """Return every transition of the role as a Markdown table."""
    lines = ["| phase | event | next phase | actions |", "|---|---|---|---|"]
    for (its_role, phase, event), (then, actions) in TRANSITIONS.items():
        if its_role is role:
            names = ", ".join(f"`{action.name}`" for action in actions)
            lines.append(f"| {phase.value} | `{event.name}` | {then.value} | {names} |")
    return "\n".join(lines) + "\n"


def render_words() -> str:
    """Return what events and actions mean, as Markdown."""
    lines = ["| event | from | meaning |", "|---|---|---|"]
    for event in Event:
        origin = "peer" if event in REMOTE_EVENTS else "here"
        lines.append(f"| `{event.name}` | {origin} | {event.value} |")
    lines += ["", "| action | meaning |", "|---|---|"]
    lines += [f"| `{action.name}` | {action.value} |" for action in Action]
    return "\n".join(lines) + "\n"


def _node(phase: Phase) -> str:
    return phase.value.replace("-", "_")
