"""The two shims of the model: the project's table, and what its actions do to the world."""

from optmigd.protocol.states import Action, Event, Phase, Role
from tests.model.rules import MAY_RUN_AT_SOURCE, RELEASED_AT_SOURCE, Rules
from tests.model.world import (
    ANSWER_FRAME,
    ATTEMPT,
    ENDED_CANCELLED,
    ENDED_COMPLETED,
    ENDED_FAILED,
    FREED,
    HERE,
    MANIFEST,
    READY,
    REFUSAL_FRAME,
    RELEASE,
    RESUMED_FRAME,
    SOURCE_REFUSAL,
    SWITCHOVER,
    World,
)

FAILED, CANCELLED, COMPLETED = Phase.FAILED.value, Phase.CANCELLED.value, Phase.COMPLETED.value
WAITING_OR_RUNNING = frozenset(
    phase.value for phase in (Phase.AWAITING_TOKEN, Phase.STARTING, Phase.COMPLETED)
)
_ENDS = {FAILED: ENDED_FAILED, CANCELLED: ENDED_CANCELLED, COMPLETED: ENDED_COMPLETED}


class Shims:
    """Takes events to a shim and carries out what the table says."""

    def __init__(self, rules: Rules) -> None:
        self.source_table = rules.table(Role.SOURCE)
        self.destination_table = rules.table(Role.DESTINATION)

    def source(self, world: World, event: Event, *, silent: bool = False) -> World | None:
        """Return the world after an event at the source's shim; None where the table has none.

        Args:
            world: before.
            event: what happens.
            silent: the shim has crashed: it says nothing.
        """
        step = self.source_table.get((world.s_phase, event))
        if step is None or world.s_place not in (HERE, FREED):
            return None
        phase, actions = step
        before = world.s_phase
        runs, place, wire, frames = world.s_runs, world.s_place, world.wire, world.s_frames
        relayed = world.s_daemon == ATTEMPT and world.s_link and not silent
        early = world.freed_early
        if event is Event.QUIESCED:
            runs = False
        for action in actions:
            if action is Action.RESUME_SOURCE:
                runs = True
            elif action is Action.SEND_MANIFEST and not silent:
                wire |= MANIFEST
            elif action is Action.DESTROY_DESTINATION and relayed:
                wire |= SOURCE_REFUSAL
            elif action is Action.SEND_TOKEN and RELEASE not in frames:
                frames = self._tell(world.s_connected and not silent, frames, RELEASE)
            elif action is Action.FREE_SOURCE:
                runs, place = False, FREED
                if event is not Event.RESUMED_RECEIVED or not world.d_confirmed:
                    early = "the source was freed before its shim saw the confirmation"
        if phase != before and phase in _ENDS:
            frames = self._tell(world.s_connected and not silent, frames, _ENDS[phase])
        return world._replace(
            s_phase=phase,
            s_runs=runs,
            s_place=place,
            wire=wire,
            s_frames=frames,
            freed_early=early,
        )

    def destination(self, world: World, event: Event, *, silent: bool = False) -> World | None:
        """The same at the destination's shim."""
        step = self.destination_table.get((world.d_phase, event))
        if step is None or world.d_place not in (HERE, FREED):
            return None
        phase, actions = step
        before = world.d_phase
        runs, place, frames = world.d_runs, world.d_place, world.d_frames
        starts, confirmed, wire = world.d_starts, world.d_confirmed, world.wire
        heard = world.d_connected and not silent
        if event is Event.OFFERED and phase != before:
            frames = self._tell(heard, frames, ANSWER_FRAME)
        if event is Event.MANIFEST_EQUAL and phase != before:
            frames = self._tell(heard, frames, SWITCHOVER)
        if event is Event.RUNNING:
            confirmed = True
        for action in actions:
            if action is Action.RUN:
                runs, starts = True, starts + 1
            elif action is Action.SEND_READY and not silent:
                wire |= READY
            elif action is Action.SEND_REFUSAL:
                frames = self._tell(heard, frames, REFUSAL_FRAME)
            elif action is Action.SEND_RESUMED and RESUMED_FRAME not in frames:
                frames = self._tell(heard, frames, RESUMED_FRAME)
            elif action is Action.DESTROY_DESTINATION:
                runs, place = False, FREED
        if phase != before and phase in (FAILED, CANCELLED):
            frames = self._tell(heard, frames, _ENDS[phase])
        return world._replace(
            d_phase=phase,
            d_runs=runs,
            d_place=place,
            wire=wire,
            d_frames=frames,
            d_starts=starts,
            d_confirmed=confirmed,
        )

    @staticmethod
    def _tell(heard: bool, frames: tuple[str, ...], frame: str) -> tuple[str, ...]:
        return (*frames, frame) if heard else frames


def source_released(world: World) -> bool:
    """Whether the source's shim is past the point of no return."""
    return world.s_phase in RELEASED_AT_SOURCE


def source_may_run(world: World) -> bool:
    """Whether the table lets the source run."""
    return world.s_phase in MAY_RUN_AT_SOURCE
