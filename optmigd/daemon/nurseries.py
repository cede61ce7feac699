"""A nursery whose single failure comes out as itself."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import trio

from optmigd.protocol.errors import OptmigError


@asynccontextmanager
async def open_flat_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that raises one exception instead of a group.

    When several tasks fail at once, a bug wins over a cancellation from outside, and that over an
    expected error: the relay of a migration breaks in both directions for one and the same reason.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        raise min(_leaves(group), key=_rank) from None


async def first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when the first of several waits does; the others are cancelled."""
    async with open_flat_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[None]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _rank(error: BaseException) -> int:
    if isinstance(error, OptmigError):
        return 2
    return 1 if isinstance(error, trio.Cancelled) else 0
