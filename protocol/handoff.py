"""The hand-off: who may execute, and the token that moves the right to do so.

`Migration` walks the table of `states.py`. It decides nothing else, so that every decision about
the right to execute can be found in one table and tried exhaustively.
"""

from optmigd.protocol.errors import AlreadyReleased, LocalProtocolError, RemoteProtocolError
from optmigd.protocol.session_messages import ReleaseToken
from optmigd.protocol.states import (
    ENDED,
    MAY_RUN,
    RELEASED,
    REMOTE_EVENTS,
    STATE_OF,
    TRANSITIONS,
    Action,
    Event,
    Phase,
    Role,
    State,
)

__all__ = ["Action", "Event", "Migration", "Phase", "Role", "State", "check_token"]


class Migration:
    """One side's place in a migration.

    Args:
        role: which side.
        phase: where it stands; another than SETUP is for a shim that takes up what an earlier one
            of the same instance has left.
    """

    def __init__(self, role: Role, phase: Phase = Phase.SETUP) -> None:
        self.role = role
        self.phase = phase

    @property
    def state(self) -> State:
        """The name for people and programs."""
        return STATE_OF[self.phase]

    @property
    def may_run(self) -> bool:
        """Whether this instance may execute now."""
        return (self.role, self.phase) in MAY_RUN

    @property
    def released(self) -> bool:
        """Whether the point of no return is past, as far as this side knows."""
        return (self.role, self.phase) in RELEASED

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do but to answer repetitions."""
        return self.phase in ENDED

    def handle(self, event: Event) -> tuple[Action, ...]:
        """Take one event and return what to do, in this order.

        Call it *before* acting: where it raises, nothing has changed.

        Raises:
            AlreadyReleased: a cancel after the point of no return.
            RemoteProtocolError: the peer caused an event that is illegal now.
            LocalProtocolError: this side did.
        """
        step = TRANSITIONS.get((self.role, self.phase, event))
        if step is None:
            if event is Event.CANCEL and self.released:
                raise AlreadyReleased(
                    "the source has let go of this enclave; the move can only be completed",
                    phase=self.phase.value,
                )
            error = RemoteProtocolError if event in REMOTE_EVENTS else LocalProtocolError
            raise error(
                f"{event.name} is illegal for the {self.role.value} in phase {self.phase.value}",
                role=self.role.value,
                phase=self.phase.value,
                event=event.name,
            )
        self.phase, actions = step
        return actions


def check_token(
    token: ReleaseToken,
    *,
    migration_id: bytes,
    generation: int,
    instance: bytes,
    state_digest: bytes,
) -> None:
    """Make sure that a token gives *this* instance the right to execute *this* state.

    Args:
        token: as opened by `HandoffSeals.open_token`.
        migration_id: of this migration.
        generation: the generation that this instance will have.
        instance: what this side sent in `Answer.instance`.
        state_digest: what this side sent in `Ready.digest`.

    Raises:
        RemoteProtocolError: it is for another instance, state, generation or migration.
    """
    expected = ReleaseToken(migration_id, generation, instance, state_digest)
    wrong = [
        name
        for name in ReleaseToken.__struct_fields__
        if getattr(token, name) != getattr(expected, name)
    ]
    if wrong:
        raise RemoteProtocolError(
            "the token is not for this instance and state; it does not run", differs=wrong
        )
