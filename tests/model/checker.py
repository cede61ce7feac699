"""Explores every world that can come about, and says which promise is broken, and how.

Breadth first, so that the run that leads to a broken promise is as short as can be.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

from optmigd.protocol.states import Phase
from tests.model import destination_side, source_side
from tests.model.destination_side import TAKES_FROM_STREAM
from tests.model.faults import Budget, Faults
from tests.model.rules import Rules
from tests.model.shims import (
    CANCELLED,
    COMPLETED,
    FAILED,
    Shims,
    source_may_run,
    source_released,
)
from tests.model.source_side import OFFERS_AGAIN
from tests.model.world import (
    DONE,
    HERE,
    PROPOSAL,
    RESUMED,
    RESUMED_AGAIN,
    RESUMED_FRAME,
    TOKEN,
    TOKEN_AGAIN,
    TOKEN_ON_STREAM,
    World,
)

NOT_HAPPENED = frozenset({FAILED, CANCELLED})
_NOT_NEEDED = frozenset({OFFERS_AGAIN, TAKES_FROM_STREAM})
"""Steps that may happen, and that no way to a good end may rest on."""
_SESSION = (
    "source shim hears",
    "destination shim hears",
    "source daemon hears Abort",
    "destination daemon hears the token",
    "destination daemon hears Abort",
)


@dataclass(frozen=True)
class Verdict:
    """What an exploration found.

    Attributes:
        worlds, steps: how many different worlds, and ways from one to the next.
        depth: of the longest shortest way to a world, in steps.
        seconds: it took.
        broken: the promise that does not hold; empty: all hold.
        run: the steps that lead to where it does not.
    """

    worlds: int
    steps: int
    depth: int
    seconds: float
    broken: str = ""
    run: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = f"{self.worlds:,} worlds, {self.steps:,} steps, depth {self.depth}"
        if not self.broken:
            return f"{found}, {self.seconds:.1f} s: every promise holds"
        lines = [f"{found}: {self.broken}", *(f"  {n:2} {s}" for n, s in enumerate(self.run, 1))]
        return "\n".join(lines)


class Explorer:
    """One exploration under given rules; `explore` once."""

    def __init__(self, rules: Rules, budget: Budget) -> None:
        self._rules = rules
        self._shims = Shims(rules)
        self._faults = Faults(rules, self._shims, budget)
        self._start = World(wire=PROPOSAL, faults=self._faults.none_yet)
        self._numbers: dict[World, int] = {}
        self._worlds: list[World] = []
        self._depths: list[int] = []
        self._parents: list[tuple[int, str]] = []
        self._calm: list[list[int]] = []
        self._steps = 0

    def explore(self, most_worlds: int = 5_000_000) -> Verdict:
        """Return what holds.

        Raises:
            RuntimeError: there are more worlds than `most_worlds`: the space was not exhausted.
        """
        begun_s = monotonic()
        gc.disable()  # all of it is kept to the end, and none of it refers to itself
        try:
            return self._explore(begun_s, most_worlds)
        finally:
            gc.enable()

    def _explore(self, begun_s: float, most_worlds: int) -> Verdict:
        self._add(self._start, 0, -1, "")
        for number in _growing(self._worlds):
            world = self._worlds[number]
            if wrong := wrong_at_once(world):
                return self._verdict(begun_s, wrong, number)
            for label, after in self._calm_moves(world):
                found = self._add(after, self._depths[number] + 1, number, label)
                if wrong := wrong_step(world, after):
                    return self._verdict(begun_s, wrong, found)
                if label not in _NOT_NEEDED and (world.link_up or not label.startswith(_SESSION)):
                    self._calm[number].append(found)
            for label, after in self._faults.moves(world):
                found = self._add(after, self._depths[number] + 1, number, label)
                if wrong := wrong_step(world, after):
                    return self._verdict(begun_s, wrong, found)
            if len(self._worlds) > most_worlds:
                raise RuntimeError(f"more than {most_worlds} worlds")
        stuck = self._stuck()
        if stuck is not None:
            wrong = "from here no way without another fault leads to one running, agreed instance"
            return self._verdict(begun_s, wrong, stuck)
        return self._verdict(begun_s)

    def phases(self) -> tuple[set[str], set[str]]:
        """Return the phases that the two shims have been in."""
        return {w.s_phase for w in self._worlds}, {w.d_phase for w in self._worlds}

    def ends(self) -> set[tuple[str, str]]:
        """Return how the two journals say that it ended, wherever both daemons are done."""
        return {
            (world.s_row, world.d_row)
            for world in self._worlds
            if world.s_daemon == world.d_daemon == DONE and not world.excused
        }

    def _calm_moves(self, world: World) -> Iterator[tuple[str, World]]:
        yield from source_side.shim_moves(world, self._shims)
        yield from source_side.daemon_moves(world, self._rules, self._shims)
        yield from destination_side.shim_moves(world, self._rules, self._shims)
        yield from destination_side.daemon_moves(world, self._rules, self._shims)

    def _add(self, world: World, depth: int, parent: int, label: str) -> int:
        self._steps += 1
        known = self._numbers.setdefault(world, len(self._worlds))
        if known == len(self._worlds):
            self._worlds.append(world)
            self._depths.append(depth)
            self._parents.append((parent, label))
            self._calm.append([])
        return known

    def _stuck(self) -> int | None:
        """Return the first world from which nothing good can come without another fault."""
        before: list[list[int]] = [[] for _ in self._worlds]
        for number, following in enumerate(self._calm):
            for after in following:
                before[after].append(number)
        good = [number for number, world in enumerate(self._worlds) if settled_well(world)]
        reached = bytearray(len(self._worlds))
        for number in good:
            reached[number] = 1
        while good:
            for number in before[good.pop()]:
                if not reached[number]:
                    reached[number] = 1
                    good.append(number)
        for number, world in enumerate(self._worlds):
            if not reached[number] and not world.excused:
                return number
        return None

    def _verdict(self, begun_s: float, broken: str = "", number: int = -1) -> Verdict:
        run: list[str] = []
        while number >= 0:
            number, label = self._parents[number]
            run.append(label)
        return Verdict(
            len(self._worlds),
            self._steps,
            max(self._depths),
            monotonic() - begun_s,
            broken,
            tuple(reversed(run[:-1])),
        )


def wrong_at_once(world: World) -> str:
    """Return which promise a world breaks by itself; empty: none."""
    if world.s_runs and world.d_runs:
        return "two instances run"
    if world.d_starts > 1:
        return "the destination was started twice"
    if world.freed_early:
        return world.freed_early
    if source_released(world) and world.s_runs:
        return "the source runs after the release"
    if world.d_starts and not source_released(world):
        return "the destination was started before the release"
    if world.wire & (TOKEN | TOKEN_AGAIN | TOKEN_ON_STREAM) and not world.s_row_token:
        return "the token is on the wire before it is in the journal"
    told = world.wire & (RESUMED | RESUMED_AGAIN) or world.d_row_resumed
    if (told or RESUMED_FRAME in world.d_frames) and not world.d_confirmed:
        return "RESUMED was said before the program ran"
    if world.wire & (RESUMED | RESUMED_AGAIN) and not world.d_row_resumed:
        return "RESUMED is on the wire before it is in the journal"
    if world.s_row == COMPLETED and not world.d_row_resumed:
        return "the source says 'completed' and the destination's journal does not know of it"
    if world.s_row == COMPLETED and world.d_row == FAILED:
        return "the source says 'completed', the destination 'failed'"
    if world.d_row == COMPLETED and world.s_row in NOT_HAPPENED and not world.excused:
        return "the destination says 'completed', the source that it did not happen"
    if world.s_row in NOT_HAPPENED and world.d_row in NOT_HAPPENED and world.s_row != world.d_row:
        return "one side says 'failed', the other 'cancelled'"
    ended = world.s_phase in NOT_HAPPENED and world.s_place == HERE
    if ended and not world.s_runs:
        return "a migration that came to nothing left the program parked"
    if source_may_run(world) and not world.s_runs and world.s_place == HERE:
        return "the source may run and does not"
    return ""


def wrong_step(before: World, after: World) -> str:
    """Return which promise a step breaks; empty: none."""
    if source_released(before) and not source_released(after):
        return "the source has gone back behind the release"
    return ""


def settled_well(world: World) -> bool:
    """Whether all is over, one instance runs, and both journals say the same and the truth."""
    if world.s_daemon != DONE or world.d_daemon != DONE:
        return False
    if world.s_runs == world.d_runs:
        return False
    if world.d_runs:
        return (world.s_row, world.d_row, world.s_instance, world.d_instance) == (
            COMPLETED,
            COMPLETED,
            "moved",
            "running",
        )
    return (
        world.s_row in NOT_HAPPENED
        and world.d_row == world.s_row
        and world.s_instance == "running"
        and world.d_instance == "none"
        and world.s_phase != Phase.RELEASED.value
    )


def _growing(worlds: list[World]) -> Iterator[int]:
    """Yield every number of a list that grows meanwhile."""
    number = 0
    while number < len(worlds):
        yield number
        number += 1


def check(rules: Rules | None = None, budget: Budget | None = None) -> Verdict:
    """Explore everything and return the verdict."""
    return Explorer(rules or Rules(), budget or Budget()).explore()
