"""Delivering a release token until it is confirmed.

Past the point of no return there is one way only: forward. The token is journaled; it is sent on
the conversation that is open, and when that breaks, in new ones, for as long as it takes.
"""

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.host import Host
from optmigd.daemon.link import Link, refusal
from optmigd.protocol.errors import OptmigError
from optmigd.protocol.link import Finished, Redeliver, Resumed, Session, Token

RESUMED_TIMEOUT_S = 20.0
FIRST_DELAY_S = 0.2
LAST_DELAY_S = 30.0


async def deliver(
    host: Host,
    peer: Peer,
    link: Link | None,
    migration_id: bytes,
    token: bytes,
    log: structlog.stdlib.BoundLogger,
) -> bytes:
    """Return the destination's sealed confirmation, however long it takes.

    Args:
        host: this host.
        peer: the destination; its present address is looked up by its key for every attempt.
        link: the migration's own conversation if it is still open; not closed here.
        migration_id: of 16 bytes.
        token: the journaled token.
        log: bound to the migration.

    Cancelled, the token may or may not have arrived; delivering it again does no harm.
    """
    if link is not None:
        try:
            return await _on_open_link(link, token)
        except OptmigError as error:
            log.warning("token_delivery_interrupted", code=error.code, error=error.message)
    delay_s = FIRST_DELAY_S
    while True:
        await trio.sleep(delay_s)
        delay_s = min(2 * delay_s, LAST_DELAY_S)
        try:
            async with await host.dial(host.peers.by_key(peer.key) or peer) as again:
                await again.send(Redeliver(migration_id, token))
                confirmed = await again.expect(Resumed, timeout_s=RESUMED_TIMEOUT_S)
            log.info("token_redelivered")
            return confirmed.payload
        except OptmigError as error:
            log.warning(
                "token_redelivery_failed",
                code=error.code,
                error=error.message,
                retry_in_s=delay_s,
            )


async def _on_open_link(link: Link, token: bytes) -> bytes:
    await link.send(Token(token))
    while True:
        message = await link.receive(timeout_s=RESUMED_TIMEOUT_S)
        if isinstance(message, Resumed):
            return message.payload
        if not isinstance(message, Session | Finished):
            raise refusal(message, link.peer)
