"""Who may migrate away now, and who waits: the host's slots for outgoing migrations.

Slots are given in the order in which migrations were asked for. A destination that is full answers
`busy`; its migration then gives its slot back and keeps its place, and others go on. So nobody
holds a slot here while it waits for one there, and two hosts that migrate to each other at their
limits cannot block each other. A busy destination is asked again after a growing pause, by the
first of those who want to go there, and the others follow when it has been accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import trio

BUSY_FIRST_S = 0.25
BUSY_LAST_S = 1.0

WaitsFor = Literal["slot", "destination"]
Tell = Callable[[int, WaitsFor], None]
"""Told a place's position in the queue, from 1, and what it waits for; position 0: its turn."""


@dataclass
class _Busy:
    """A destination that was full: when to ask it again, and who is asking."""

    ask_at: float
    delay_s: float = BUSY_FIRST_S
    asking: "Place | None" = None


class Departures:
    """The slots and the queue before them. Times are of trio's clock."""

    def __init__(self, limit: int) -> None:
        """Begin empty.

        Args:
            limit: how many migrations may be under way at once.
        """
        self._limit = limit
        self._places: list[Place] = []
        self._busy: dict[bytes, _Busy] = {}

    def join(self, destination: bytes, tell: Tell) -> "Place":
        """Stand at the end of the queue; `Place.leave` must follow.

        Args:
            destination: the peer's key.
            tell: called at every change while it waits.
        """
        place = Place(self, destination, tell)
        self._places.append(place)
        self._advance()
        return place

    def _advance(self) -> None:
        """Give free slots away, in order, and tell everyone else where he stands."""
        free = self._limit - sum(place.holds for place in self._places)
        position = 0
        for place in self._places:
            if place.holds:
                continue
            closed = self._closed(place)
            if free > 0 and not closed:
                free -= 1
                self._give(place)
            else:
                position += 1
                place._stand(position, "destination" if closed else "slot")

    def _closed(self, place: "Place") -> bool:
        busy = self._busy.get(place.destination)
        return busy is not None and (busy.asking is not None or trio.current_time() < busy.ask_at)

    def _give(self, place: "Place") -> None:
        if busy := self._busy.get(place.destination):
            busy.asking = place
        place._begin()

    def _ask_at(self, place: "Place") -> float:
        """When there will be something to decide for the place, even if nobody comes or goes."""
        busy = self._busy.get(place.destination)
        if busy is None or busy.asking is not None or busy.ask_at <= trio.current_time():
            return float("inf")
        return busy.ask_at

    def _turned_away(self, place: "Place") -> None:
        busy = self._busy.get(place.destination)
        if busy is None:
            busy = self._busy[place.destination] = _Busy(ask_at=0.0)
        elif busy.asking is place:
            busy.delay_s = min(2 * busy.delay_s, BUSY_LAST_S)
            busy.asking = None
        busy.ask_at = trio.current_time() + busy.delay_s
        self._advance()

    def _accepted(self, place: "Place") -> None:
        self._busy.pop(place.destination, None)
        self._advance()

    def _left(self, place: "Place") -> None:
        self._places.remove(place)
        busy = self._busy.get(place.destination)
        if busy is not None:
            if busy.asking is place:
                busy.asking = None
            if place.holds:  # one of ours has just gone: the destination may have room again
                busy.delay_s = BUSY_FIRST_S
                busy.ask_at = min(busy.ask_at, trio.current_time() + BUSY_FIRST_S)
            if all(other.destination != place.destination for other in self._places):
                del self._busy[place.destination]
        self._advance()


class Place:
    """One migration's place in the queue, and its slot once it has one."""

    def __init__(self, departures: Departures, destination: bytes, tell: Tell) -> None:
        """Use `Departures.join`."""
        self.destination = destination
        self.holds = False
        self._departures = departures
        self._tell = tell
        self._told: tuple[int, WaitsFor] | None = None
        self._changed = trio.Event()
        self._gone = False

    async def turn(self) -> None:
        """Wait for a slot. Cancelled, the place is kept: `leave` gives it up."""
        while not self.holds:
            changed = self._changed = trio.Event()
            with trio.move_on_at(self._departures._ask_at(self)) as pause:
                await changed.wait()
            if pause.cancelled_caught:
                self._departures._advance()

    def turned_away(self) -> None:
        """The destination is full: give the slot back, keep the place."""
        self.holds = False
        self._departures._turned_away(self)

    def accepted(self) -> None:
        """The destination has room: others may ask it as well."""
        self._departures._accepted(self)

    def leave(self) -> None:
        """Give up slot and place. Doing so twice does no harm."""
        if not self._gone:
            self._gone = True
            self._departures._left(self)

    def _begin(self) -> None:
        self.holds = True
        self._changed.set()
        if self._told is not None:
            self._told = None
            self._tell(0, "slot")

    def _stand(self, position: int, waits_for: WaitsFor) -> None:
        self._changed.set()  # when its destination is asked again may have changed
        if (position, waits_for) != self._told:
            self._told = (position, waits_for)
            self._tell(position, waits_for)
