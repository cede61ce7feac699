"""What can happen at the source: its shim's own steps, and its daemon's.

Each function yields what may happen next with the world after it. A daemon does one thing at a time
and may crash between any two; what it has journaled is then all that it knows.
"""

from collections.abc import Iterator

from optmigd.protocol.recovery import Fate, Outcome
from optmigd.protocol.states import Event, Phase
from tests.model.rules import Rules
from tests.model.shims import CANCELLED, COMPLETED, FAILED, Shims, source_released
from tests.model.world import (
    ABORT_TO_DESTINATION,
    ABORT_TO_SOURCE,
    ANSWER,
    ASK,
    ATTEMPT,
    AWAIT_END,
    AWAIT_TOKEN,
    CLEAR,
    CONFIRM,
    CONNECTION_LOST,
    CONVERSE,
    DELIVER,
    DESTINATION_REFUSAL,
    DONE,
    DOWN,
    ENDED_CANCELLED,
    ENDED_COMPLETED,
    ENDED_FAILED,
    FREED,
    GONE,
    HERE,
    LOST,
    NOTE_DEPARTURE,
    NOTE_FAILURE,
    NOTE_MOVED,
    NOTE_TOKEN,
    OFFER_AGAIN,
    PEER,
    READY,
    REDELIVER,
    RELEASE,
    RESUMED,
    RESUMED_AGAIN,
    SETTLE,
    TOKEN,
    TOKEN_AGAIN,
    TOKEN_ON_STREAM,
    WITHDRAW,
    World,
    source_entry,
)

Moves = Iterator[tuple[str, World]]

OFFERS_AGAIN = "source offers the enclave again"
_INNER = (
    (Phase.ACTIVE, Event.CONVERGED),
    (Phase.QUIESCING, Event.QUIESCED),
    (Phase.SENDING_LAST, Event.MANIFEST_SENT),
    (Phase.RELEASING, Event.TOKEN_MADE),
    (Phase.CANCELLING, Event.UNWOUND),
)
_RELAYED = ((ANSWER, Event.ACCEPTED), (DESTINATION_REFUSAL, Event.PEER_REFUSED))
_ON_STREAM = ((READY, Event.READY_EQUAL),)
_ENDED = frozenset({ENDED_FAILED, ENDED_CANCELLED, ENDED_COMPLETED})
_TOKEN_PAST = frozenset({NOTE_TOKEN, DELIVER, REDELIVER, CONFIRM})


def shim_moves(world: World, shims: Shims) -> Moves:
    """The source's shim works, connects, and hears its peer."""
    if world.s_place not in (HERE, FREED):
        return
    for phase, event in _INNER:
        if world.s_phase == phase.value:
            after = shims.source(world, event)
            if after is not None:
                yield f"source shim: {event.name}", after
    relayed = world.s_connected and world.s_daemon == ATTEMPT and world.s_link
    for message, event in _ON_STREAM + (_RELAYED if relayed else ()):
        if world.wire & message:
            after = shims.source(world, event)
            if after is not None and after != world:
                yield f"source shim hears {event.name}", after


def connect(world: World, rules: Rules, shims: Shims) -> Moves:
    """The daemon connects to its agent, which repeats what was left unanswered."""
    if world.s_connected or world.s_daemon == DOWN or world.s_place not in (HERE, FREED):
        return
    connected = world._replace(s_connected=True, s_restarted=False)
    if not (source_released(world) and not rules.agent_repeats_release):
        connected = shims.source(connected, Event.RECONNECTED) or connected
    if world.s_restarted and world.s_phase == FAILED:
        connected = connected._replace(s_frames=(*connected.s_frames, ENDED_FAILED))
    yield "source daemon connects to its agent", connected


def daemon_moves(world: World, rules: Rules, shims: Shims) -> Moves:
    """The source's daemon, whatever it is doing."""
    doing = world.s_daemon
    if doing == DOWN:
        yield "source daemon starts", _start(world, rules)
        return
    yield from connect(world, rules, shims)
    yield from _frames(world, rules)
    agent_gone = world.s_place in (LOST, GONE)
    if doing == ATTEMPT:
        if agent_gone:
            yield "source daemon sees that its agent has gone", world._replace(s_daemon=WITHDRAW)
        if not world.link_up or world.d_daemon != CONVERSE:
            lost = world._replace(s_daemon=WITHDRAW, s_link=False)
            yield "source daemon notices that the link is lost", lost
        if world.s_link and world.wire & ABORT_TO_SOURCE:
            yield "source daemon hears Abort", world._replace(s_daemon=WITHDRAW)
    elif doing == WITHDRAW:
        yield from _withdraw(world, agent_gone, shims)
    elif doing == AWAIT_END:
        yield "source daemon has waited long enough for the end", world._replace(s_daemon=SETTLE)
    elif doing == AWAIT_TOKEN and agent_gone:
        yield "source daemon sees that its agent has gone", world._replace(s_daemon=SETTLE)
    elif doing == SETTLE:
        wire = world.wire | (ABORT_TO_DESTINATION if world.s_link else 0)
        yield "source daemon says Abort", world._replace(s_daemon=NOTE_FAILURE, wire=wire)
    elif doing == NOTE_FAILURE:
        exited = "exited" if agent_gone else world.s_instance
        noted = world._replace(s_daemon=DONE, s_link=False, s_row=world.s_why, s_instance=exited)
        yield f"source daemon journals {world.s_why!r}", noted
    elif doing == NOTE_TOKEN:
        sent = TOKEN if world.s_link and not rules.token_journaled_first else 0
        if sent and not world.wire & TOKEN:
            yield "source daemon sends the token", world._replace(wire=world.wire | sent)
        # Sent at once. It may never arrive, like all that is sent: as after a crash in between.
        wire = world.wire | TOKEN_ON_STREAM
        noted = world._replace(s_daemon=DELIVER, s_row_token=True, wire=wire)
        yield "source daemon journals the token and sends it on a stream", noted
    elif doing in (DELIVER, REDELIVER, CONFIRM, NOTE_DEPARTURE, NOTE_MOVED, CLEAR):
        yield from _deliver(world, rules, shims, agent_gone)
    elif doing == DONE and _can_offer_again(world):
        yield OFFERS_AGAIN, world._replace(wire=world.wire | OFFER_AGAIN)


def _can_offer_again(world: World) -> bool:
    ended = world.s_row in (FAILED, CANCELLED)
    open_there = world.d_daemon not in (ASK, DONE)
    return ended and world.s_runs and not world.wire & OFFER_AGAIN and open_there


def _frames(world: World, rules: Rules) -> Moves:
    """The daemon reads what its agent has said."""
    doing = world.s_daemon
    if not world.s_frames or doing in (SETTLE, NOTE_FAILURE, NOTE_TOKEN, DONE):
        return
    frame, rest = world.s_frames[0], world.s_frames[1:]
    read = world._replace(s_frames=rest)
    if frame == RELEASE and doing in (ATTEMPT, WITHDRAW, AWAIT_END, AWAIT_TOKEN):
        read = read._replace(s_daemon=NOTE_TOKEN, s_token=True)
    elif frame in _ENDED and doing in (ATTEMPT, WITHDRAW, AWAIT_END, AWAIT_TOKEN):
        why = world.s_why
        if doing == ATTEMPT and frame == ENDED_CANCELLED:
            why = CANCELLED
        read = read._replace(s_daemon=SETTLE, s_why=why)
    elif frame == ENDED_COMPLETED and doing == CONFIRM:
        read = read._replace(s_daemon=NOTE_DEPARTURE)
    elif frame == CONNECTION_LOST and doing == ATTEMPT:
        read = read._replace(s_daemon=WITHDRAW)
    yield f"source daemon reads {frame!r}", read


def _withdraw(world: World, agent_gone: bool, shims: Shims) -> Moves:
    """The agent is asked to withdraw; it obeys, or it has released."""
    if agent_gone:
        yield "source daemon sees that its agent has gone", world._replace(s_daemon=SETTLE)
    elif world.s_connected and source_released(world):
        yield "source shim refuses to withdraw", world._replace(s_daemon=AWAIT_TOKEN)
    elif world.s_connected:
        after = shims.source(world, Event.CANCEL)
        if after is not None:
            yield "source shim withdraws", after._replace(s_daemon=AWAIT_END)


def _deliver(world: World, rules: Rules, shims: Shims, agent_gone: bool) -> Moves:
    """Past the point of no return."""
    doing = world.s_daemon
    if doing == DELIVER:
        if world.s_link:
            if not world.wire & TOKEN:
                yield "source daemon sends the token", world._replace(wire=world.wire | TOKEN)
            if world.wire & RESUMED:
                yield "source daemon hears Resumed", world._replace(s_daemon=CONFIRM)
        yield "source daemon gives the open link up", world._replace(s_daemon=REDELIVER)
    elif doing == REDELIVER:
        if not world.wire & TOKEN_AGAIN:
            sent = world._replace(wire=world.wire | TOKEN_AGAIN)
            yield "source daemon delivers the token again", sent
        if world.wire & RESUMED_AGAIN:
            yield "source daemon hears Resumed", world._replace(s_daemon=CONFIRM)
    elif doing == CONFIRM:
        if agent_gone:
            done = world._replace(s_daemon=NOTE_DEPARTURE)
            yield "source daemon needs no agent to confirm", done
        elif world.s_connected:
            after = shims.source(world, Event.RESUMED_RECEIVED)
            again = world.s_phase == COMPLETED and rules.agent_repeats_ended
            if again and after is not None and ENDED_COMPLETED not in after.s_frames:
                after = after._replace(s_frames=(*after.s_frames, ENDED_COMPLETED))
            if after is not None and after != world:
                yield "source shim sees the confirmation", after
    elif doing == NOTE_DEPARTURE:
        noted = world._replace(s_row=COMPLETED, s_daemon=NOTE_MOVED)
        if rules.departure_in_one_step:
            noted = noted._replace(s_instance="moved", s_daemon=CLEAR)
        yield "source daemon journals 'completed'", noted
    elif doing == NOTE_MOVED:
        yield "source daemon journals 'moved'", world._replace(s_instance="moved", s_daemon=CLEAR)
    else:
        yield "source daemon ends the agent", end_agent(world)


def end_agent(world: World) -> World:
    """The daemon ends the source's agent, and with it whatever it still held."""
    if world.s_place == LOST:
        return world._replace(s_daemon=DONE, s_link=False)
    early = world.freed_early
    if not world.d_confirmed and not world.excused:
        early = "the source's agent was ended before the destination ran"
    return world._replace(
        s_daemon=DONE,
        s_link=False,
        s_place=GONE,
        s_runs=False,
        s_connected=False,
        s_frames=(),
        freed_early=early,
    )


def _start(world: World, rules: Rules) -> World:
    """A daemon starts with nothing but the journal."""
    alive = world.s_place in (HERE, FREED)
    entry = source_entry(world) if world.s_row == "active" else None
    fate = rules.fate_at_start(world.s_instance, entry, agent_alive=alive)
    row, instance = world.s_row, world.s_instance
    if fate in (Fate.LEFTOVER, Fate.REMOVE):
        if entry is not None:
            row = rules.closing_state(entry)
        return end_agent(world._replace(s_row=row)) if alive else world._replace(s_daemon=DONE)
    if fate is Fate.LOST:
        instance = "exited"
    doing = DONE
    if entry is not None:
        doing = REDELIVER if rules.must_deliver(entry.token) else WITHDRAW
    return world._replace(
        s_daemon=doing,
        s_why=FAILED,
        s_row=row,
        s_instance=instance,
        s_token=world.s_row_token,
        s_link=False,
    )


def answer_outcome(world: World, rules: Rules) -> Outcome:
    """What the source's daemon answers a destination that asks."""
    return rules.answer_outcome(source_entry(world), PEER)


def cancel(world: World) -> World | None:
    """An operator cancels, or the time that was given is over."""
    if world.s_daemon != ATTEMPT:
        return None
    return world._replace(s_daemon=WITHDRAW, s_why=CANCELLED)


def give_up(world: World) -> World | None:
    """An operator gives up a delivery: what was released is then nobody's here."""
    if world.s_daemon not in _TOKEN_PAST - {NOTE_TOKEN}:
        return None
    settled = world._replace(s_row=FAILED, s_instance="lost", excused="given up")
    return end_agent(settled)
