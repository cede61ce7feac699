"""Following a migration, with Ctrl-C in mind.

It runs in trio, because Ctrl-C must be able to ask for the end of a migration while its outcome is
still being read. The first Ctrl-C asks the daemon to cancel and waits for what comes of it; the
second gives up waiting, and the migration takes its course.
"""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from optmigd import requests
from optmigd.cli.progress import SilentDisplay
from optmigd.client import Client
from optmigd.protocol.errors import OptmigError


def follow(
    socket: Path | None, params: dict[str, Any], display: SilentDisplay
) -> dict[str, Any] | OptmigError | None:
    """Start a migration and return its result or its error; None if the person has left it.

    Args:
        socket: the daemon's control socket; None for the default.
        params: those of `migrate` on the control socket.
        display: told what happens.
    """
    return trio.run(_followed, Client(socket), params, display)


async def _followed(
    client: Client, params: dict[str, Any], display: SilentDisplay
) -> dict[str, Any] | OptmigError | None:
    outcome: dict[str, Any] | OptmigError | None = None
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                _react, signals, client, params["enclave"], display, nursery.cancel_scope
            )
            outcome = await _outcome(client, params, display)
            nursery.cancel_scope.cancel()
    return outcome


async def _outcome(
    client: Client, params: dict[str, Any], display: SilentDisplay
) -> dict[str, Any] | OptmigError:
    try:
        async with client.open("migrate", params) as reply:
            async for event in reply:
                display.event(event)
            result = await reply.result()
    except OptmigError as error:
        return error
    return requests.failure(result) or result


async def _react(
    signals: AsyncIterator[int],
    client: Client,
    enclave: str,
    display: SilentDisplay,
    scope: trio.CancelScope,
) -> None:
    """Cancel the migration at the first signal and leave it at the second."""
    asked = False
    async with trio.open_nursery() as nursery:
        async for _ in signals:
            if asked:
                scope.cancel()
                return
            asked = True
            nursery.start_soon(_cancel, client, enclave, display)


async def _cancel(client: Client, enclave: str, display: SilentDisplay) -> None:
    display.say("cancelling; press Ctrl-C again to leave the migration to itself")
    try:
        await client.cancel(enclave)
    except OptmigError as error:
        display.say(f"it cannot be cancelled: {error.message}")
