"""What may befall the system, each at most as often as its budget says."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from optmigd.protocol.states import Event, Phase
from tests.model.destination_side import discard, old_token
from tests.model.rules import Rules
from tests.model.shims import COMPLETED, FAILED, WAITING_OR_RUNNING, Shims, source_released
from tests.model.source_side import cancel, give_up
from tests.model.world import (
    CONNECTION_LOST,
    DOWN,
    FREED,
    HERE,
    LOST,
    World,
)

_TROUBLE = (Event.FAULT, Event.TIMEOUT, Event.LINK_LOST)


@dataclass(frozen=True)
class Budget:
    """How often each may happen in one run, and how many of them together.

    Attributes:
        together: of all kinds.
        daemon_crashes: kill -9 of either daemon; it starts again at any later time.
        shim_crashes: of each shim's agent process; its keeper starts it again.
        losses: application or keeper killed, on either side.
        cuts: the link breaks, each side noticing when it does.
        troubles: fault, time-out or broken data stream at one of the shims.
        operator: cancel before the release, or giving up the delivery or the wait after it.
        old_tokens: a hostile host delivers a token of an earlier migration.
    """

    together: int = 2
    daemon_crashes: int = 2
    shim_crashes: int = 1
    losses: int = 1
    cuts: int = 1
    troubles: int = 1
    operator: int = 1
    old_tokens: int = 1


KINDS = [
    "daemon_crashes",
    "source_shim_crashes",
    "destination_shim_crashes",
    "losses",
    "cuts",
    "troubles",
    "operator",
    "old_tokens",
]


class Faults:
    """Yields everything that may go wrong in a world."""

    def __init__(self, rules: Rules, shims: Shims, budget: Budget) -> None:
        self._rules = rules
        self._shims = shims
        self._together = budget.together
        by_name = {field.name: getattr(budget, field.name) for field in fields(budget)}
        self._most = [
            by_name["shim_crashes"] if "shim_crashes" in kind else by_name[kind] for kind in KINDS
        ]

    @property
    def none_yet(self) -> tuple[int, ...]:
        """Counts of a run without faults."""
        return (0,) * len(KINDS)

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        """Yield each fault with the world after it."""
        if sum(world.faults) >= self._together:
            return
        kinds = (
            self._daemon_crashes,
            self._source_shim_crash,
            self._destination_shim_crash,
            self._losses,
            self._cut,
            self._troubles,
            self._operator,
            self._old_token,
        )
        for number, kind in enumerate(kinds):
            if world.faults[number] < self._most[number]:
                for label, after in kind(world):
                    if after != world:
                        counts = list(world.faults)
                        counts[number] += 1
                        yield label, after._replace(faults=tuple(counts))

    def _daemon_crashes(self, world: World) -> Iterator[tuple[str, World]]:
        if world.s_daemon != DOWN:
            down = world._replace(
                s_daemon=DOWN,
                s_why=FAILED,
                s_token=False,
                s_link=False,
                s_connected=False,
                s_frames=(),
            )
            # An agent that loses its daemon before the release withdraws by itself.
            yield "CRASH of the source's daemon", self._shims.source(down, Event.CANCEL) or down
        if world.d_daemon != DOWN:
            yield (
                "CRASH of the destination's daemon",
                world._replace(
                    d_daemon=DOWN,
                    d_link=False,
                    d_connected=False,
                    d_frames=(),
                    d_token="",
                    d_token_given=False,
                    d_aborted=False,
                    d_ended=False,
                    d_ready_possible=False,
                ),
            )

    def _source_shim_crash(self, world: World) -> Iterator[tuple[str, World]]:
        if world.s_place not in (HERE, FREED):
            return
        again = world
        if not source_released(world):
            # The new agent resumes the program and says that the migration has failed.
            again = self._shims.source(world, Event.FAULT, silent=True) or world
        frames = (CONNECTION_LOST,) if world.s_daemon != DOWN else ()
        crashed = again._replace(s_connected=False, s_frames=frames, s_restarted=True)
        yield "CRASH of the source's shim", crashed

    def _destination_shim_crash(self, world: World) -> Iterator[tuple[str, World]]:
        if world.d_place not in (HERE, FREED):
            return
        again = world
        if world.d_phase not in WAITING_OR_RUNNING:
            again = self._shims.destination(world, Event.FAULT, silent=True) or world
        frames = (CONNECTION_LOST,) if world.d_daemon != DOWN else ()
        crashed = again._replace(d_connected=False, d_frames=frames, d_token="", d_restarted=True)
        yield "CRASH of the destination's shim", crashed

    def _losses(self, world: World) -> Iterator[tuple[str, World]]:
        if world.s_place == HERE:
            # It held the right to run unless its token is safe in the journal.
            safe = world.s_phase == COMPLETED or (source_released(world) and world.s_row_token)
            lost = world._replace(
                s_place=LOST,
                s_runs=False,
                s_connected=False,
                s_frames=(),
                excused=world.excused or ("" if safe else "the source was lost"),
            )
            yield "LOSS of the instance at the source", lost
        if world.d_place == HERE:
            # From READY on the source may let go in favour of this instance.
            held = world.d_phase in WAITING_OR_RUNNING
            lost = world._replace(
                d_place=LOST,
                d_runs=False,
                d_connected=False,
                d_frames=(),
                d_token="",
                excused=world.excused or ("the destination was lost" if held else ""),
            )
            yield "LOSS of the instance at the destination", lost

    def _cut(self, world: World) -> Iterator[tuple[str, World]]:
        if world.link_up and (world.s_link or world.d_link):
            yield "CUT of the link", world._replace(link_up=False)

    def _troubles(self, world: World) -> Iterator[tuple[str, World]]:
        for event in _TROUBLE:
            after = self._shims.source(world, event)
            if after is not None:
                yield f"{event.name} at the source's shim", after
            after = self._shims.destination(world, event)
            if after is None:
                continue
            if world.d_phase in WAITING_OR_RUNNING and after.d_phase == FAILED:
                # Its waiting process has died, or could not be started: that is a loss.
                excuse = "the destination was lost" if event is Event.FAULT else world.excused
                after = after._replace(excused=world.excused or excuse)
            yield f"{event.name} at the destination's shim", after
        if world.d_phase == Phase.ACTIVE.value:
            differs = self._shims.destination(world, Event.MANIFEST_DIFFERS)
            if differs is not None:
                yield "the manifest does not fit", differs

    def _operator(self, world: World) -> Iterator[tuple[str, World]]:
        after = cancel(world)
        if after is not None:
            yield "CANCEL by the operator", after
        after = give_up(world)
        if after is not None:
            yield "the operator GIVES the delivery UP", after
        after = discard(world, self._rules, self._shims)
        if after is not None:
            yield "the operator DISCARDS what waits", after

    def _old_token(self, world: World) -> Iterator[tuple[str, World]]:
        after = old_token(world, self._rules, self._shims)
        if after is not None:
            yield "a hostile host delivers an OLD TOKEN", after
