"""The queue before a host's slots: order, places, busy destinations. On a clock that jumps."""

import pytest
import trio
from trio.testing import MockClock

from optmigd.daemon.departures import BUSY_FIRST_S, BUSY_LAST_S, Departures, Place, WaitsFor

B, C = b"b" * 32, b"c" * 32


class Queue:
    """Migrations called by numbers, and what they were told."""

    def __init__(self, limit: int) -> None:
        self.departures = Departures(limit)
        self.places: dict[int, Place] = {}
        self.told: dict[int, list[tuple[int, WaitsFor]]] = {}

    def join(self, number: int, destination: bytes = B) -> Place:
        told = self.told[number] = []

        def tell(position: int, waits_for: WaitsFor) -> None:
            told.append((position, waits_for))

        place = self.places[number] = self.departures.join(destination, tell)
        return place

    @property
    def holders(self) -> list[int]:
        return [number for number, place in self.places.items() if place.holds]


async def test_slots_are_given_in_order(autojump_clock: MockClock) -> None:
    queue = Queue(2)
    for number in range(1, 6):
        queue.join(number)
    assert queue.holders == [1, 2]
    assert [queue.told[number] for number in (1, 2)] == [[], []]
    assert [queue.told[number] for number in (3, 4, 5)] == [
        [(1, "slot")],
        [(2, "slot")],
        [(3, "slot")],
    ]
    queue.places.pop(2).leave()
    assert queue.holders == [1, 3]
    assert queue.told[3] == [(1, "slot"), (0, "slot")]
    assert queue.told[5][-1] == (2, "slot")
    queue.places.pop(4).leave()  # cancelled while it waited
    assert queue.told[5][-1] == (1, "slot")
    queue.places.pop(1).leave()
    assert queue.holders == [3, 5]


async def test_who_waits_wakes_when_it_is_his_turn(autojump_clock: MockClock) -> None:
    queue = Queue(1)
    first, second = queue.join(1), queue.join(2)
    await first.turn()
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            await trio.sleep(30)
            first.leave()

        nursery.start_soon(leave)
        await second.turn()
    assert trio.current_time() >= 30
    with trio.move_on_after(5) as scope:
        await queue.join(3).turn()
    assert scope.cancelled_caught
    assert not queue.places[3].holds


async def test_a_busy_destination_holds_nobody_else_up(autojump_clock: MockClock) -> None:
    queue = Queue(1)
    to_b, to_c, to_b_too = queue.join(1, B), queue.join(2, C), queue.join(3, B)
    to_b.turned_away()
    assert queue.holders == [2]
    assert queue.told[1] == [(1, "destination")]
    assert queue.told[3][-1] == (2, "destination")
    to_c.leave()
    with trio.fail_after(2 * BUSY_FIRST_S):
        await to_b.turn()  # the first of those who want to go there asks again
    assert not to_b_too.holds
    to_b.accepted()
    to_b.leave()
    await to_b_too.turn()


async def test_one_alone_asks_a_busy_destination_and_the_others_follow(
    autojump_clock: MockClock,
) -> None:
    queue = Queue(3)
    places = [queue.join(number) for number in range(1, 4)]
    places[0].turned_away()
    places[1].turned_away()
    places[2].turned_away()
    assert queue.holders == []
    await places[0].turn()
    assert queue.holders == [1]
    await trio.sleep(10)
    assert queue.holders == [1]
    places[0].accepted()
    assert queue.holders == [1, 2, 3]


async def test_pauses_grow_to_a_bound_and_begin_anew(autojump_clock: MockClock) -> None:
    queue = Queue(1)
    place = queue.join(1)
    pauses = []
    for _ in range(5):
        place.turned_away()
        before = trio.current_time()
        await place.turn()
        pauses.append(trio.current_time() - before)
    assert pauses == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])
    assert (BUSY_FIRST_S, BUSY_LAST_S) == (0.25, 1.0)
    place.accepted()
    place.turned_away()
    before = trio.current_time()
    await place.turn()
    assert trio.current_time() - before == pytest.approx(BUSY_FIRST_S)


async def test_a_destination_that_one_of_ours_has_reached_is_asked_sooner(
    autojump_clock: MockClock,
) -> None:
    queue = Queue(2)
    first, second = queue.join(1), queue.join(2)
    for _ in range(3):
        second.turned_away()
        await second.turn()
    second.turned_away()  # the next question is in a second
    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.turn)
        await trio.sleep(0.1)
        first.leave()
    assert trio.current_time() - before == pytest.approx(0.1 + BUSY_FIRST_S)


async def test_who_leaves_while_asking_lets_the_next_one_ask(autojump_clock: MockClock) -> None:
    queue = Queue(2)
    first, second = queue.join(1), queue.join(2)
    first.turned_away()
    second.turned_away()
    await first.turn()
    first.leave()
    first.leave()
    await second.turn()


async def test_hosts_that_send_to_each_other_at_their_limits_do_not_block(
    autojump_clock: MockClock,
) -> None:
    """Each has one way in and one way out, and both are always asked for at once."""
    incoming = {B: 0, C: 0}
    moved: list[bytes] = []

    async def migrate(departures: Departures, destination: bytes) -> None:
        place = departures.join(destination, lambda *_: None)
        try:
            while True:
                await place.turn()
                if incoming[destination] < 1:
                    break
                place.turned_away()
            incoming[destination] += 1
            place.accepted()
            await trio.sleep(3)
            incoming[destination] -= 1
        finally:
            place.leave()
        moved.append(destination)

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            others = Departures(2)  # of a third host, which wants to go to both as well
            at = {B: Departures(1), C: Departures(1)}
            for _ in range(6):
                nursery.start_soon(migrate, at[B], C)
                nursery.start_soon(migrate, at[C], B)
                nursery.start_soon(migrate, others, B)
                nursery.start_soon(migrate, others, C)
    assert len(moved) == 24
