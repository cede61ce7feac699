"""The hand-off table, tried exhaustively: two machines, a network that loses and repeats.

The model is small on purpose. Each side is its phase; the network is the set of messages that were
ever sent, and any of them may arrive at any time, any number of times, or never. That is more than
the real network can do (the session refuses repetitions), so what holds here holds there. Every
local event may happen whenever the table allows it: faults, time-outs, cancels, lost links.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from optmigd.protocol.errors import (
    AlreadyReleased,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
)
from optmigd.protocol.handoff import (
    Action,
    Event,
    Migration,
    Phase,
    Role,
    State,
    check_token,
)
from optmigd.protocol.session import ReleaseToken
from optmigd.protocol.states import REMOTE_EVENTS, STATE_OF, TRANSITIONS

# What a message does to its receiver, and which action or accepted event sends it.
SENT_BY_SOURCE = {
    Action.SEND_MANIFEST: "manifest",
    Action.SEND_TOKEN: "token",
    Action.DESTROY_DESTINATION: "source-refuse",
}
SENT_BY_DESTINATION = {
    Action.SEND_READY: "ready",
    Action.SEND_RESUMED: "resumed",
    Action.SEND_REFUSAL: "destination-refuse",
}
TO_DESTINATION = {
    "proposal": (Event.OFFERED,),
    "round": (Event.ROUND_RECEIVED,),
    "manifest": (Event.MANIFEST_EQUAL, Event.MANIFEST_DIFFERS),
    "token": (Event.TOKEN_ACCEPTED,),
    "source-refuse": (Event.PEER_REFUSED,),
}
TO_SOURCE = {
    "answer": (Event.ACCEPTED,),
    "round-done": (Event.ROUND_DONE,),
    "ready": (Event.READY_EQUAL, Event.READY_DIFFERS),
    "resumed": (Event.RESUMED_RECEIVED,),
    "destination-refuse": (Event.PEER_REFUSED,),
}


@dataclass(frozen=True)
class World:
    source: Phase
    destination: Phase
    sent: frozenset[str]


START = World(Phase.SETUP, Phase.SETUP, frozenset({"proposal"}))


def machine(role: Role, phase: Phase) -> Migration:
    migration = Migration(role)
    migration.phase = phase
    return migration


def step(world: World, role: Role, event: Event) -> World | None:
    """Return the world after `event`, or None where the table forbids it."""
    phase = world.source if role is Role.SOURCE else world.destination
    migration = machine(role, phase)
    try:
        actions = migration.handle(event)
    except (ProtocolError, AlreadyReleased):
        assert migration.phase is phase, "a refused event changed something"
        return None
    messages = SENT_BY_SOURCE if role is Role.SOURCE else SENT_BY_DESTINATION
    sent = set(world.sent) | {messages[action] for action in actions if action in messages}
    if event is Event.OFFERED:
        sent.add("answer")
    if event is Event.ACCEPTED:
        sent.add("round")
    if event is Event.ROUND_RECEIVED:
        sent.add("round-done")
    if role is Role.SOURCE:
        return World(migration.phase, world.destination, frozenset(sent))
    return World(world.source, migration.phase, frozenset(sent))


def moves(world: World) -> Iterator[tuple[Role, Event, World]]:
    for role, inbox in ((Role.SOURCE, TO_SOURCE), (Role.DESTINATION, TO_DESTINATION)):
        arriving = [
            event for name, events in inbox.items() if name in world.sent for event in events
        ]
        for event in (*arriving, *(event for event in Event if event not in REMOTE_EVENTS)):
            after = step(world, role, event)
            if after is not None:
                yield role, event, after


def explore(start: World) -> dict[World, set[World]]:
    """Return every reachable world with those that follow it."""
    found: dict[World, set[World]] = {start: set()}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        for _, _, after in moves(world):
            found[world].add(after)
            if after not in found:
                found[after] = set()
                queue.append(after)
    return found


REACHABLE = explore(START)


def describe(world: World) -> tuple[Migration, Migration]:
    return machine(Role.SOURCE, world.source), machine(Role.DESTINATION, world.destination)


def test_the_model_reaches_every_phase() -> None:
    assert {world.source for world in REACHABLE} == {
        phase for role, phase, _ in TRANSITIONS if role is Role.SOURCE
    }
    assert {world.destination for world in REACHABLE} == {
        phase for role, phase, _ in TRANSITIONS if role is Role.DESTINATION
    }
    assert len(REACHABLE) > 150


def test_never_may_both_run() -> None:
    for world in REACHABLE:
        source, destination = describe(world)
        assert not (source.may_run and destination.may_run), world


def test_after_release_the_source_never_may_run() -> None:
    for world, following in REACHABLE.items():
        if describe(world)[0].released:
            for after in following:
                source = describe(after)[0]
                assert source.released, (world, after)
                assert not source.may_run, (world, after)


def test_the_destination_runs_only_after_release() -> None:
    for world in REACHABLE:
        source, destination = describe(world)
        if destination.may_run or "token" in world.sent:
            assert source.released, world


def test_a_source_that_ends_without_release_has_its_enclave_back() -> None:
    ended = {Phase.FAILED, Phase.CANCELLED}
    assert any(world.source in ended for world in REACHABLE)
    for world in REACHABLE:
        if world.source in ended:
            assert describe(world)[0].may_run, world


def test_nothing_is_freed_before_the_destination_runs() -> None:
    for world in REACHABLE:
        if world.source is Phase.COMPLETED:
            assert "resumed" in world.sent, world


def test_a_resume_is_never_forgotten() -> None:
    """Every way from a parked source back to one that may run passes `RESUME_SOURCE`."""
    parked = {Phase.SENDING_LAST, Phase.AWAITING_READY, Phase.RELEASING}
    back = 0
    for (role, phase, _), (then, actions) in TRANSITIONS.items():
        if role is Role.SOURCE and phase in parked and then not in {*parked, Phase.RELEASED}:
            assert actions[0] is Action.RESUME_SOURCE
            back += 1
    assert back >= 15


def reaches(start: World, goal: tuple[Phase, Phase]) -> bool:
    """Whether the goal is reachable when no more faults, cancels and lost links happen."""
    calm = {Event.FAULT, Event.CANCEL, Event.LINK_LOST, Event.READY_DIFFERS, Event.MANIFEST_DIFFERS}
    seen = {start}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        if (world.source, world.destination) == goal:
            return True
        for _, event, after in moves(world):
            if event not in calm and after not in seen:
                seen.add(after)
                queue.append(after)
    return False


def test_a_released_enclave_completes_when_the_network_recovers() -> None:
    """Unless the destination itself has failed, a token that was let out can still arrive."""
    lost = {Phase.FAILED, Phase.CANCELLED}
    waiting = [
        world
        for world in REACHABLE
        if world.source is Phase.RELEASED and world.destination not in lost
    ]
    assert waiting
    for world in waiting:
        assert reaches(world, (Phase.COMPLETED, Phase.COMPLETED)), world


def test_silence_destroys_no_destination_that_has_said_ready() -> None:
    for event in (Event.LINK_LOST, Event.TIMEOUT):
        destination = machine(Role.DESTINATION, Phase.AWAITING_TOKEN)
        assert destination.handle(event) == (Action.ASK_SOURCE,)
        assert destination.phase is Phase.AWAITING_TOKEN


HAPPY_SOURCE = [
    (Event.ACCEPTED, State.ACTIVE),
    (Event.ROUND_DONE, State.ACTIVE),
    (Event.CONVERGED, State.PRE_SWITCHOVER),
    (Event.QUIESCED, State.SWITCHOVER),
    (Event.MANIFEST_SENT, State.SWITCHOVER),
    (Event.READY_EQUAL, State.SWITCHOVER),
    (Event.TOKEN_MADE, State.SWITCHOVER),
    (Event.RESUMED_RECEIVED, State.COMPLETED),
]
HAPPY_DESTINATION = [
    (Event.OFFERED, State.ACTIVE),
    (Event.ROUND_RECEIVED, State.ACTIVE),
    (Event.MANIFEST_EQUAL, State.SWITCHOVER),
    (Event.PREPARED, State.SWITCHOVER),
    (Event.TOKEN_ACCEPTED, State.SWITCHOVER),
    (Event.RUNNING, State.COMPLETED),
]


@pytest.mark.parametrize(
    ("role", "way", "expected"),
    [
        (
            Role.SOURCE,
            HAPPY_SOURCE,
            [
                Action.QUIESCE,
                Action.SEND_LAST_PAGES,
                Action.SEND_MANIFEST,
                Action.SEAL_TOKEN,
                Action.SEND_TOKEN,
                Action.FREE_SOURCE,
            ],
        ),
        (
            Role.DESTINATION,
            HAPPY_DESTINATION,
            [Action.PREPARE, Action.SEND_READY, Action.RUN, Action.SEND_RESUMED],
        ),
    ],
)
def test_the_way_that_everything_goes_well(
    role: Role, way: list[tuple[Event, State]], expected: list[Action]
) -> None:
    migration = Migration(role)
    actions: list[Action] = []
    for event, state in way:
        actions += migration.handle(event)
        assert migration.state is state
    assert actions == expected
    assert migration.ended
    assert migration.released
    assert migration.may_run is (role is Role.DESTINATION)


def test_a_repeated_token_starts_nothing_twice() -> None:
    destination = machine(Role.DESTINATION, Phase.AWAITING_TOKEN)
    assert destination.handle(Event.TOKEN_ACCEPTED) == (Action.RUN,)
    assert destination.handle(Event.TOKEN_ACCEPTED) == ()
    assert destination.handle(Event.RUNNING) == (Action.SEND_RESUMED,)
    assert destination.handle(Event.TOKEN_ACCEPTED) == (Action.SEND_RESUMED,)


def test_a_cancel_after_release_is_refused_by_name() -> None:
    for role, phase in (
        (Role.SOURCE, Phase.RELEASED),
        (Role.SOURCE, Phase.COMPLETED),
        (Role.DESTINATION, Phase.STARTING),
        (Role.DESTINATION, Phase.COMPLETED),
    ):
        with pytest.raises(AlreadyReleased):
            machine(role, phase).handle(Event.CANCEL)


def test_an_illegal_event_names_who_broke_the_protocol() -> None:
    with pytest.raises(RemoteProtocolError, match="READY_EQUAL is illegal for the source in phase"):
        Migration(Role.SOURCE).handle(Event.READY_EQUAL)
    with pytest.raises(LocalProtocolError, match="QUIESCED"):
        Migration(Role.SOURCE).handle(Event.QUIESCED)
    with pytest.raises(RemoteProtocolError, match="TOKEN_ACCEPTED"):
        Migration(Role.DESTINATION).handle(Event.TOKEN_ACCEPTED)


def test_every_phase_has_a_state() -> None:
    assert set(STATE_OF) == set(Phase)
    assert set(STATE_OF.values()) == set(State)


TOKEN = ReleaseToken(b"m" * 16, 7, b"i" * 32, b"d" * 32)


def test_a_token_fits_one_instance_and_one_state() -> None:
    check_token(
        TOKEN, migration_id=b"m" * 16, generation=7, instance=b"i" * 32, state_digest=b"d" * 32
    )


@pytest.mark.parametrize(
    ("token", "differs"),
    [
        (ReleaseToken(b"x" * 16, 7, b"i" * 32, b"d" * 32), "migration_id"),
        (ReleaseToken(b"m" * 16, 6, b"i" * 32, b"d" * 32), "generation"),
        (ReleaseToken(b"m" * 16, 7, b"x" * 32, b"d" * 32), "destination_instance"),
        (ReleaseToken(b"m" * 16, 7, b"i" * 32, b"x" * 32), "state_digest"),
    ],
)
def test_a_token_for_something_else_is_refused(token: ReleaseToken, differs: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_token(
            token, migration_id=b"m" * 16, generation=7, instance=b"i" * 32, state_digest=b"d" * 32
        )
    assert caught.value.fields["differs"] == [differs]
