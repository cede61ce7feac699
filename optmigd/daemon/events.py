"""Telling watchers what migrations do, without ever waiting for a slow one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

Event = dict[str, Any]

BOUND = 256
"""Events that a watcher may lag behind; those after that are dropped for this watcher alone."""


class EventHub:
    """Publish and subscribe in one process."""

    def __init__(self) -> None:
        """Start without subscribers."""
        self._subscribers: dict[trio.MemorySendChannel[Event], tuple[str, str]] = {}

    def publish(self, event: Event) -> None:
        """Give an event with `enclave` and `migration_id` to everyone who asked for it."""
        for channel, (enclave, migration_id) in self._subscribers.items():
            if enclave in ("", event["enclave"]) and migration_id in ("", event["migration_id"]):
                try:
                    channel.send_nowait(event)
                except trio.WouldBlock:
                    continue  # The outcome does not depend on it; status has the latest figures.

    @contextmanager
    def subscribe(
        self, *, enclave: str = "", migration_id: str = ""
    ) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """Receive events of an enclave, of a migration, or all of them."""
        send, receive = trio.open_memory_channel[Event](BOUND)
        self._subscribers[send] = (enclave, migration_id)
        try:
            with send, receive:
                yield receive
        finally:
            del self._subscribers[send]
