"""What can happen at the destination: its shim's own steps, and its daemon's."""

from optmigd.protocol.recovery import UNSETTLED, Fate
from optmigd.protocol.states import Event, Phase
from tests.model.rules import Rules
from tests.model.shims import COMPLETED, FAILED, WAITING_OR_RUNNING, Shims
from tests.model.source_side import Moves, answer_outcome
from tests.model.world import (
    ABORT_TO_DESTINATION,
    ABORT_TO_SOURCE,
    ANSWER,
    ANSWER_FRAME,
    ASK,
    ATTEMPT,
    CONNECTION_LOST,
    CONVERSE,
    DELIVER,
    DESTINATION_REFUSAL,
    DESTROY,
    DONE,
    DOWN,
    ENDED_CANCELLED,
    ENDED_FAILED,
    FAIL,
    FINISH,
    FREED,
    GONE,
    HERE,
    LOST,
    MANIFEST,
    OFFER_AGAIN,
    OLD_TOKEN,
    PEER,
    PROPOSAL,
    REFUSAL_FRAME,
    RESUMED,
    RESUMED_AGAIN,
    RESUMED_FRAME,
    RIGHT_TOKEN,
    SAID_NO_TOKEN,
    SOURCE_REFUSAL,
    SWITCHOVER,
    TOKEN,
    TOKEN_AGAIN,
    TOKEN_ON_STREAM,
    WAIT,
    Entry,
    World,
    destination_entry,
)

_INNER = ((Phase.PLACING, Event.PREPARED), (Phase.STARTING, Event.RUNNING))
_RELAYED = ((PROPOSAL, Event.OFFERED), (SOURCE_REFUSAL, Event.PEER_REFUSED))
_ON_STREAM = ((MANIFEST, Event.MANIFEST_EQUAL),)
TAKES_FROM_STREAM = "destination shim takes the token from a stream"


def shim_moves(world: World, rules: Rules, shims: Shims) -> Moves:
    """The destination's shim works, hears its peer, and takes a token."""
    if world.d_place not in (HERE, FREED):
        return
    for phase, event in _INNER:
        if world.d_phase == phase.value:
            after = shims.destination(world, event)
            if after is not None:
                yield f"destination shim: {event.name}", after
    relayed = world.d_connected and world.d_daemon == CONVERSE and world.d_link
    for message, event in _ON_STREAM + (_RELAYED if relayed else ()):
        if world.wire & message:
            after = shims.destination(world, event)
            if after is not None and after != world:
                yield f"destination shim hears {event.name}", after
    if world.d_phase == Phase.ACTIVE.value and world.d_daemon == WAIT:
        after = shims.destination(world, Event.FAULT)
        if after is not None:
            yield "destination shim finds its streams cut", after
    if world.wire & TOKEN_ON_STREAM and world.d_phase in WAITING_OR_RUNNING:
        after = shims.destination(world, Event.TOKEN_ACCEPTED)
        if after is not None and after != world:
            yield TAKES_FROM_STREAM, after
    if world.d_token and world.d_connected:
        taken = None
        if world.d_phase in WAITING_OR_RUNNING and rules.accepts(world.d_token):
            taken = shims.destination(world, Event.TOKEN_ACCEPTED)
        word = "refuses" if taken is None else "takes"
        after = (taken or world)._replace(d_token="")
        yield f"destination shim {word} the {world.d_token}", after


def old_token(world: World, rules: Rules, shims: Shims) -> World | None:
    """A hostile host hands the shim a token of an earlier migration."""
    if world.d_phase not in WAITING_OR_RUNNING or not rules.accepts(OLD_TOKEN):
        return None
    return shims.destination(world, Event.TOKEN_ACCEPTED)


def daemon_moves(world: World, rules: Rules, shims: Shims) -> Moves:
    """The destination's daemon, whatever it is doing."""
    doing = world.d_daemon
    if doing == DOWN:
        yield "destination daemon starts", _start(world, rules)
        return
    yield from _connect(world, rules, shims)
    yield from _redelivery(world, rules)
    if doing in (CONVERSE, WAIT):
        yield from _frames(world, rules)
        # What an agent said before it went is read first.
        if world.d_place in (LOST, GONE) and not world.d_frames:
            yield "destination daemon sees that its agent has gone", _go_on(world, rules)
        if world.wire & OFFER_AGAIN and rules.gives_way(
            token_given=world.d_token_given, owned=world.d_instance == "running"
        ):
            aside = world._replace(d_aborted=True)
            yield "destination daemon gives way to a new offer", _go_on(aside, rules)
    if doing == CONVERSE:
        yield from _conversation(world, rules)
    elif doing == WAIT:
        yield from _wait(world, rules, shims)
    elif doing == FAIL:
        noted = world._replace(d_row=UNSETTLED, d_daemon=DESTROY)
        yield "destination daemon journals that nothing came of it", noted
    elif doing == DESTROY:
        yield "destination daemon destroys the instance", _destroy(world)._replace(d_daemon=ASK)
    elif doing == ASK and world.s_daemon != DOWN:
        state = rules.last_word(answer_outcome(world, rules).value)
        if state is not None:
            told = world._replace(d_row=state, d_daemon=DONE)
            yield f"destination daemon asks, the source says {state!r}", told
    elif doing == FINISH:
        finished = world._replace(d_row=COMPLETED, d_daemon=DONE, d_link=False)
        yield "destination daemon journals 'completed'", finished


def _connect(world: World, rules: Rules, shims: Shims) -> Moves:
    if world.d_connected or world.d_place not in (HERE, FREED):
        return
    connected = world._replace(d_connected=True, d_restarted=False)
    if world.d_phase in WAITING_OR_RUNNING:
        connected = connected._replace(d_frames=(*connected.d_frames, SWITCHOVER))
        if rules.agent_repeats_resumed:
            connected = shims.destination(connected, Event.RECONNECTED) or connected
    elif world.d_restarted and world.d_phase == FAILED:
        connected = connected._replace(d_frames=(*connected.d_frames, ENDED_FAILED))
    yield "destination daemon connects to its agent", connected


def _conversation(world: World, rules: Rules) -> Moves:
    if not world.link_up or world.s_daemon not in (ATTEMPT, DELIVER) or not world.s_link:
        lost = world._replace(d_link=False)
        yield "destination daemon notices that the link is lost", _go_on(lost, rules)
    if not world.d_link:
        return
    if world.wire & TOKEN and rules.takes_token(aborted=world.d_aborted):
        given = _give_token(world)
        if given != world:
            yield "destination daemon hears the token", given
    if world.wire & ABORT_TO_DESTINATION:
        heeded = rules.heeds_abort(token_given=world.d_token_given)
        after = world._replace(d_aborted=world.d_aborted or heeded, d_link=False)
        yield "destination daemon hears Abort", _go_on(after, rules)


def _frames(world: World, rules: Rules) -> Moves:
    """The daemon reads what its agent has said."""
    if not world.d_frames:
        return
    frame, rest = world.d_frames[0], world.d_frames[1:]
    read = world._replace(d_frames=rest)
    talks = world.d_daemon == CONVERSE and world.d_link
    if frame == ANSWER_FRAME:
        wire = world.wire | (ANSWER if talks else 0)
        read = read._replace(d_ready_possible=rules.ready_possible("active"), wire=wire)
    elif frame == SWITCHOVER:
        read = read._replace(d_ready_possible=rules.ready_possible("switchover"))
    elif frame == REFUSAL_FRAME and talks:
        read = read._replace(wire=world.wire | DESTINATION_REFUSAL)
    elif frame == RESUMED_FRAME:
        wire = world.wire | (RESUMED if talks else 0)
        read = read._replace(d_instance="running", d_row_resumed=True, wire=wire)
        read = read._replace(d_daemon=FINISH)
        if not rules.arrival_in_one_step:
            yield "destination daemon tells of an arrival", world._replace(wire=wire)
    elif frame in (ENDED_FAILED, ENDED_CANCELLED):
        wire = world.wire | (ABORT_TO_SOURCE if talks else 0)
        read = _go_on(read._replace(d_ended=True, wire=wire), rules)
    elif frame == CONNECTION_LOST and world.d_daemon == CONVERSE:
        read = _go_on(read._replace(d_link=False), rules)
    yield f"destination daemon reads {frame!r}", read


def _go_on(world: World, rules: Rules) -> World:
    """Finish without the conversation."""
    waits = rules.may_be_released(
        ready_possible=world.d_ready_possible,
        token_given=world.d_token_given,
        aborted=world.d_aborted,
        ended=world.d_ended,
        agent_alive=world.d_place in (HERE, FREED),
    )
    doing = FAIL
    if world.d_row_resumed:
        doing = FINISH
    elif waits:
        doing = WAIT
    return world._replace(d_daemon=doing, d_link=False)


def _wait(world: World, rules: Rules, shims: Shims) -> Moves:
    answer = answer_outcome(world, rules).value
    if rules.stops_waiting(answer) and world.s_daemon != DOWN and not world.wire & SAID_NO_TOKEN:
        asked = world._replace(wire=world.wire | SAID_NO_TOKEN)
        yield f"destination daemon asks, the source says {answer!r}", asked
    if world.wire & SAID_NO_TOKEN:
        ended = _shim_gives_up(world, rules, shims)
        if ended is not None:
            yield "destination shim gives up at its daemon's word", ended


def _shim_gives_up(world: World, rules: Rules, shims: Shims) -> World | None:
    """The daemon has its shim end the wait; the shim refuses when it has taken the token."""
    after: World | None = world
    if rules.shim_decides_destruction:
        after = shims.destination(world, Event.CANCEL) if world.d_connected else None
    return None if after is None else _go_on(after._replace(d_aborted=True), rules)


def discard(world: World, rules: Rules, shims: Shims) -> World | None:
    """An operator gives up the wait for a token."""
    owned = world.d_row_resumed or world.d_instance == "running"
    if world.d_daemon != WAIT or world.d_token_given or owned:
        return None
    after = _shim_gives_up(world, rules, shims)
    return None if after is None else after._replace(excused=world.excused or "discarded")


def _redelivery(world: World, rules: Rules) -> Moves:
    """The token came in a conversation of its own."""
    if not world.wire & TOKEN_AGAIN:
        return
    if world.d_daemon == DONE:
        stored = rules.stored_confirmation(destination_entry(world), PEER)
        if stored is not None and not world.wire & RESUMED_AGAIN:
            answered = world._replace(wire=world.wire | RESUMED_AGAIN)
            yield "destination daemon answers from its journal", answered
    elif world.d_row_resumed:
        if not world.wire & RESUMED_AGAIN:
            answered = world._replace(wire=world.wire | RESUMED_AGAIN)
            yield "destination daemon answers Resumed", answered
    elif rules.takes_token(aborted=world.d_aborted):
        given = _give_token(world)
        if given != world:
            yield "destination daemon takes a redelivered token", given


def _give_token(world: World) -> World:
    """Hand the token to the agent; it is lost with the connection."""
    if world.d_place not in (HERE, FREED):
        return world
    given = world._replace(d_token_given=True)
    return given._replace(d_token=RIGHT_TOKEN) if world.d_connected else given


def _destroy(world: World) -> World:
    place = LOST if world.d_place == LOST else GONE
    return world._replace(
        d_daemon=DONE,
        d_link=False,
        d_place=place,
        d_runs=False,
        d_connected=False,
        d_frames=(),
        d_token="",
        d_instance="none",
        freed_early=world.freed_early or _destroyed_while_running(world),
    )


def _destroyed_while_running(world: World) -> str:
    return "the destination was destroyed while it ran" if world.d_runs else ""


def _start(world: World, rules: Rules) -> World:
    """A daemon starts with nothing but the journal."""
    alive = world.d_place in (HERE, FREED)
    entry = destination_entry(world) if world.d_row == "active" else None
    if world.d_instance == "none":
        return _forget(world, rules, entry)
    fate = rules.fate_at_start(world.d_instance, entry, agent_alive=alive)
    if fate in (Fate.REMOVE, Fate.LEFTOVER):
        return _forget(_destroy(world), rules, entry)
    instance = "exited" if fate is Fate.LOST else world.d_instance
    doing = DONE
    if entry is not None:
        doing = FINISH if world.d_row_resumed else WAIT
    return world._replace(
        d_daemon=doing,
        d_instance=instance,
        d_token_given=False,
        d_aborted=False,
        d_ended=False,
        d_ready_possible=True,
        d_link=False,
    )


def _forget(world: World, rules: Rules, entry: Entry | None) -> World:
    """Close the row of a migration of which nothing is left, or ask how it ended."""
    row = world.d_row
    if entry is not None:
        row = UNSETTLED if rules.needs_last_word(entry) else rules.closing_state(entry)
    return world._replace(d_daemon=ASK if row == UNSETTLED else DONE, d_row=row)
