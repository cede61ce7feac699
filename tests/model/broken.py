"""Rules of the project with one of them broken, and the promise that must then not hold.

The model is worth something only if it can fail. Each entry names a rule, breaks it, and says which
promise the checker must find broken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optmigd.protocol.recovery import Fate, MigrationEntry, Outcome
from optmigd.protocol.states import TRANSITIONS, Action, Event, Key, Phase, Role, Step
from tests.model.faults import Budget
from tests.model.rules import Rules

ONE_FAULT = Budget(together=1)
CRASH_AND_DECISION = Budget(
    together=2, daemon_crashes=1, shim_crashes=0, losses=0, cuts=0, troubles=0, old_tokens=0
)
CRASH_AND_LOSS = Budget(
    together=2, daemon_crashes=1, shim_crashes=0, cuts=0, troubles=0, operator=0, old_tokens=0
)
CRASH_LOSS_AND_DECISION = Budget(
    together=3, daemon_crashes=1, shim_crashes=0, cuts=0, troubles=0, old_tokens=0
)


@dataclass(frozen=True)
class Broken:
    """One broken rule, and how the promise that it kept is called."""

    rules: Rules
    promise: str
    budget: Budget = ONE_FAULT


def _with(role: Role, phase: Phase, event: Event, then: Phase, *actions: Action) -> Rules:
    changed: dict[Key, Step] = dict(TRANSITIONS)
    changed[role, phase, event] = (then, actions)
    return Rules(transitions=changed)


def _without_resume() -> Mapping[Key, Step]:
    return {
        key: (then, tuple(a for a in actions if a is not Action.RESUME_SOURCE))
        for key, (then, actions) in TRANSITIONS.items()
    }


def _any_token(*_: object, **__: object) -> None:
    """Accept every token."""


def _remove_arrivals(state: str, row: MigrationEntry | None, *, agent_alive: bool) -> Fate:
    if state == "incoming":
        return Fate.REMOVE
    return Rules().fate_at_start(state, row, agent_alive=agent_alive)


def _pending_is_failed(row: MigrationEntry | None, asker: bytes) -> Outcome:
    answer = Rules().answer_outcome(row, asker)
    return Outcome.FAILED if answer is Outcome.PENDING else answer


def _own_word(answer: str) -> str:
    return "failed"


def _never(*_: object, **__: object) -> bool:
    return False


def _nothing_stored(row: MigrationEntry | None, asker: bytes) -> bytes | None:
    return None


def _only_given_tokens(*, token_given: bool, aborted: bool, **_: bool) -> bool:
    return token_given and not aborted


STUCK = "no way without another fault"
_SOURCE, _DESTINATION = Role.SOURCE, Role.DESTINATION
_DESTROYED = "the destination was destroyed while it ran"
_RUNS_ON = "the source runs after the release"

BROKEN: dict[str, Callable[[], Broken]] = {
    "a released source resumes when the link is lost": lambda: Broken(
        _with(_SOURCE, Phase.RELEASED, Event.LINK_LOST, Phase.RELEASED, Action.RESUME_SOURCE),
        _RUNS_ON,
    ),
    "a released source fails when it takes too long": lambda: Broken(
        _with(_SOURCE, Phase.RELEASED, Event.TIMEOUT, Phase.FAILED, Action.RESUME_SOURCE),
        "the source has gone back behind the release",
    ),
    "a source that is cancelled stays parked": lambda: Broken(
        Rules(transitions=_without_resume()), "the source may run and does not"
    ),
    "the source is freed when it has made the token": lambda: Broken(
        _with(
            _SOURCE,
            Phase.RELEASING,
            Event.TOKEN_MADE,
            Phase.RELEASED,
            Action.SEND_TOKEN,
            Action.FREE_SOURCE,
        ),
        "freed before its shim saw the confirmation",
    ),
    "a destination destroys itself on a time-out after READY": lambda: Broken(
        _with(
            _DESTINATION,
            Phase.AWAITING_TOKEN,
            Event.TIMEOUT,
            Phase.FAILED,
            Action.DESTROY_DESTINATION,
        ),
        STUCK,
    ),
    "a destination runs when the link is lost": lambda: Broken(
        _with(_DESTINATION, Phase.AWAITING_TOKEN, Event.LINK_LOST, Phase.STARTING, Action.RUN),
        "the destination was started before the release",
    ),
    "a repeated token starts again": lambda: Broken(
        _with(_DESTINATION, Phase.COMPLETED, Event.TOKEN_ACCEPTED, Phase.STARTING, Action.RUN),
        "started twice",
    ),
    "RESUMED is said when the token is taken": lambda: Broken(
        _with(
            _DESTINATION,
            Phase.AWAITING_TOKEN,
            Event.TOKEN_ACCEPTED,
            Phase.STARTING,
            Action.RUN,
            Action.SEND_RESUMED,
        ),
        "RESUMED was said before the program ran",
    ),
    "the generation of a token is not looked at": lambda: Broken(
        Rules(check_token=_any_token), "the destination was started before the release"
    ),
    "the token is sent before it is journaled": lambda: Broken(
        Rules(token_journaled_first=False), "the token is on the wire before it is in the journal"
    ),
    "the arrival is told before it is journaled": lambda: Broken(
        Rules(arrival_in_one_step=False), "RESUMED is on the wire before it is in the journal"
    ),
    "the departure is journaled in two steps": lambda: Broken(
        Rules(departure_in_one_step=False), STUCK
    ),
    "the source's agent does not repeat its token": lambda: Broken(
        Rules(agent_repeats_release=False), STUCK
    ),
    "the source's agent does not repeat its end": lambda: Broken(
        Rules(agent_repeats_ended=False), STUCK
    ),
    "the destination's daemon destroys without asking its shim": lambda: Broken(
        Rules(shim_decides_destruction=False),
        _DESTROYED,
        CRASH_AND_DECISION,
    ),
    "a starting daemon removes what waits for its token": lambda: Broken(
        Rules(fate_at_start=_remove_arrivals), _DESTROYED
    ),
    "a starting daemon does not deliver": lambda: Broken(
        Rules(must_deliver=_never), "the source that it did not happen", CRASH_AND_LOSS
    ),
    "'pending' is answered as 'failed'": lambda: Broken(
        Rules(answer_outcome=_pending_is_failed), STUCK, Budget(together=1, operator=0)
    ),
    "a destination that said READY is destroyed when the link is lost": lambda: Broken(
        Rules(may_be_released=_only_given_tokens), _DESTROYED
    ),
    "a destination's daemon reckons with READY when its agent says `switchover`": lambda: Broken(
        Rules(ready_possible=lambda state: state == "switchover"), _DESTROYED
    ),
    "a confirmation is not kept": lambda: Broken(Rules(stored_confirmation=_nothing_stored), STUCK),
    "a destination that came to nothing calls it 'failed' by itself": lambda: Broken(
        Rules(last_word=_own_word), "one side says 'failed', the other 'cancelled'"
    ),
    "a starting daemon calls what is left 'failed' by itself": lambda: Broken(
        Rules(needs_last_word=_never),
        "one side says 'failed', the other 'cancelled'",
        CRASH_LOSS_AND_DECISION,
    ),
    "no answer ends the wait for a token": lambda: Broken(Rules(stops_waiting=_never), STUCK),
}
