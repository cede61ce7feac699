"""The rules that the model obeys: those of the project, or the same with one broken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from optmigd.protocol import recovery
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.handoff import check_token
from optmigd.protocol.session import ReleaseToken
from optmigd.protocol.states import MAY_RUN, RELEASED, TRANSITIONS, Action, Event, Key, Role, Step
from tests.model.world import OLD_TOKEN, RIGHT_TOKEN

TOKENS = {
    RIGHT_TOKEN: ReleaseToken(b"m" * 16, 7, b"i" * 32, b"d" * 32),
    OLD_TOKEN: ReleaseToken(b"m" * 16, 6, b"i" * 32, b"d" * 32),
}
"""The token of this migration, and one that differs from it in the generation alone."""


@dataclass(frozen=True)
class Rules:
    """Every decision that the model takes from the project.

    The flags are the orders and repetitions that stand in the code of daemon and agent and not in
    a function: a test that breaks one shows what it is good for.
    """

    transitions: Mapping[Key, Step] = field(default_factory=lambda: TRANSITIONS)
    check_token: Callable[..., None] = check_token
    fate_at_start: Callable[..., recovery.Fate] = recovery.fate_at_start
    closing_state: Callable[..., str] = recovery.closing_state
    must_deliver: Callable[..., bool] = recovery.must_deliver
    answer_outcome: Callable[..., recovery.Outcome] = recovery.answer_outcome
    stored_confirmation: Callable[..., bytes | None] = recovery.stored_confirmation
    ready_possible: Callable[..., bool] = recovery.ready_possible
    may_be_released: Callable[..., bool] = recovery.may_be_released
    heeds_abort: Callable[..., bool] = recovery.heeds_abort
    gives_way: Callable[..., bool] = recovery.gives_way
    takes_token: Callable[..., bool] = recovery.takes_token
    stops_waiting: Callable[..., bool] = recovery.stops_waiting
    last_word: Callable[..., str | None] = recovery.last_word
    needs_last_word: Callable[..., bool] = recovery.needs_last_word
    token_journaled_first: bool = True
    departure_in_one_step: bool = True
    arrival_in_one_step: bool = True
    agent_repeats_resumed: bool = True
    agent_repeats_ended: bool = True
    agent_repeats_release: bool = True
    shim_decides_destruction: bool = True

    def table(self, role: Role) -> dict[tuple[str, Event], tuple[str, tuple[Action, ...]]]:
        """Return the role's transitions by the names of phases, which are quick to look up."""
        return {
            (phase.value, event): (then.value, actions)
            for (its_role, phase, event), (then, actions) in self.transitions.items()
            if its_role is role
        }

    def accepts(self, token: str) -> bool:
        """Whether the destination's shim takes a token for its own."""
        own = TOKENS[RIGHT_TOKEN]
        try:
            self.check_token(
                TOKENS[token],
                migration_id=own.migration_id,
                generation=own.generation,
                instance=own.destination_instance,
                state_digest=own.state_digest,
            )
        except RemoteProtocolError:
            return False
        return True


RELEASED_AT_SOURCE = frozenset(phase.value for role, phase in RELEASED if role is Role.SOURCE)
MAY_RUN_AT_SOURCE = frozenset(phase.value for role, phase in MAY_RUN if role is Role.SOURCE)
