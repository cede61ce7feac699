"""What every part of one daemon shares."""

import time
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from optmigd.config import HostIdentity, Peer, PeerBook, Settings, format_key
from optmigd.daemon.bandwidth import Bandwidth
from optmigd.daemon.departures import Departures
from optmigd.daemon.events import EventHub
from optmigd.daemon.images import ImageStore
from optmigd.daemon.journal import Journal, MigrationRow
from optmigd.daemon.link import Link, dial
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.registry import Registry
from optmigd.daemon.tickets import Tickets
from optmigd.daemon.turns import Turns


class Incoming(Protocol):
    """An enclave on its way here, as the rest of the daemon sees it."""

    record: MigrationRecord
    resident_bytes: int

    @property
    def owned(self) -> bool:
        """Whether the enclave is this host's already."""

    @property
    def peer_key(self) -> bytes:
        """The source's host key."""

    @property
    def turned_away(self) -> bool:
        """Whether the offer was refused because this host is full: it takes no room here."""

    @property
    def agent_pid(self) -> int | None:
        """The process that holds what has arrived."""

    @property
    def awaits_token(self) -> bool:
        """Whether it is ready, its conversation has ended, and no token has come."""

    async def supersede(self) -> None:
        """Give way to a new offer of the same enclave by the same host; returns when it has."""

    async def discard(self) -> None:
        """Destroy the waiting instance; returns when it is gone."""

    async def redeliver(self, token: bytes) -> bytes:
        """Give the agent the token once more and return its sealed confirmation."""


@dataclass
class Host:
    """This host: its settings, its keys, its peers, its enclaves. `nursery` outlives requests.

    `departures`, `bandwidth` and `turns` are what migrations share: see their modules.
    `unsettled` has, by the source's key, what came to nothing here and awaits its last word.
    """

    settings: Settings
    identity: HostIdentity
    peers: PeerBook
    journal: Journal
    images: ImageStore
    registry: Registry
    tickets: Tickets
    hub: EventHub
    nursery: trio.Nursery
    log: structlog.stdlib.BoundLogger
    departures: Departures
    bandwidth: Bandwidth
    turns: Turns = field(default_factory=Turns)
    incoming: dict[bytes, Incoming] = field(default_factory=dict)
    unsettled: dict[bytes, list[MigrationRow]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What this host calls itself, and its peers should call it."""
        return self.settings.host.name

    async def dial(self, peer: Peer) -> Link:
        """Open a conversation with a peer; raises as `link.dial`."""
        return await dial(peer, self.identity, self.name, self.settings.limits)

    def peer_name(self, key: bytes) -> str:
        """Return the name of a host by its key: this one, a peer, or the key of a stranger."""
        if key == self.identity.public:
            return self.name
        peer = self.peers.by_key(key)
        return peer.name if peer is not None else format_key(key)


def now_s() -> float:
    """The time of day in seconds since 1970, for records that people read."""
    return time.time()
