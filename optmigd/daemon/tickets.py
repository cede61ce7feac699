"""One-time tickets that bind a data stream to a migration that was agreed on the link.

A data stream is a bare TCP connection: its ticket, sent over the authenticated link and worth
nothing a second time, is all that says whom it belongs to. Pages are sealed shim to shim, so a
stolen ticket could disturb a migration but never read or alter one.
"""

import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from optmigd.protocol.link import TICKET_BYTES

TICKET_LIFETIME_S = 30.0

TakeStream = Callable[[int, socket.socket], Awaitable[None]]


@dataclass(frozen=True)
class _Ticket:
    secret: bytes
    index: int
    migration_id: bytes
    take: TakeStream
    expires_s: float


class Tickets:
    """The tickets that are out. Times are of trio's clock."""

    def __init__(self) -> None:
        """Start with none."""
        self._out: list[_Ticket] = []

    def issue(self, migration_id: bytes, count: int, take: TakeStream) -> list[bytes]:
        """Make `count` tickets; `take(index, socket)` is called for each that is redeemed."""
        expires_s = trio.current_time() + TICKET_LIFETIME_S
        made = [
            _Ticket(secrets.token_bytes(TICKET_BYTES), index, migration_id, take, expires_s)
            for index in range(count)
        ]
        self._out.extend(made)
        return [ticket.secret for ticket in made]

    def redeem(self, secret: bytes) -> tuple[int, TakeStream] | None:
        """Use a ticket up; None if there is no such ticket (any more).

        Every ticket is compared, in constant time each, so timing tells nothing about any.
        """
        now_s = trio.current_time()
        self._out = [ticket for ticket in self._out if ticket.expires_s > now_s]
        found = None
        for ticket in self._out:
            if hmac.compare_digest(ticket.secret, secret):
                found = ticket
        if found is None:
            return None
        self._out.remove(found)
        return found.index, found.take

    def withdraw(self, migration_id: bytes) -> None:
        """Make the unused tickets of a migration worthless."""
        self._out = [ticket for ticket in self._out if ticket.migration_id != migration_id]
