"""Delivering a release token until it is confirmed.

Past the point of no return there is one way only: forward. The token is journaled; it is sent on
the conversation that is open, and when that breaks, in new ones, for as long as it takes.
"""

from collections.abc import Callable

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.host import Host
from optmigd.daemon.link import Link, refusal
from optmigd.daemon.nurseries import first_of
from optmigd.daemon.registry import Instance
from optmigd.daemon.source import Attempt
from optmigd.protocol.errors import ChannelClosed, OptmigError, RuntimeFailed
from optmigd.protocol.link import Finished, Redeliver, Resumed, Session, Token

RESUMED_TIMEOUT_S = 20.0
CONFIRM_TIMEOUT_S = 30.0
"""An agent that has said nothing of a confirmation for so long has refused it."""
FIRST_DELAY_S = 0.2
LAST_DELAY_S = 30.0


async def deliver_until_confirmed(
    host: Host,
    peer: Peer,
    instance: Instance,
    attempt: Attempt,
    token: bytes,
    log: structlog.stdlib.BoundLogger,
    *,
    tried: Callable[[], None],
) -> bytes:
    """Deliver until the source's agent accepts the confirmation; return it.

    Args:
        host: this host.
        peer: the destination.
        instance: the stay that ends here.
        attempt: the migration, with its conversation if that is still open.
        token: the journaled token.
        log: bound to the migration.
        tried: called when the token was sent for the first time, or could not be.

    Cancelled, the token may or may not have arrived.
    """
    link = attempt.link
    if link is not None and not await _send_token(link, token, log):
        link = None
    tried()
    while True:
        resumed = await deliver(host, peer, link, attempt.migration_id, token, log)
        if await _confirm(instance, attempt, resumed):
            return resumed
        link = None
        log.error("confirmation_refused", retry_in_s=LAST_DELAY_S)
        attempt.forget_end()
        await trio.sleep(LAST_DELAY_S)


async def _confirm(instance: Instance, attempt: Attempt, resumed: bytes) -> bool:
    """Show the confirmation to our agent; it alone can tell whether it is genuine.

    An agent that dies with it in its hands is followed by another, which is shown it again.
    """
    agent = instance.agent
    params = {"migration_id": attempt.migration_id, "payload": resumed}
    while agent is not None and not agent.gone.is_set() and attempt.ended is None:
        try:
            await agent.connected()
            await agent.notify("resumed_delivered", params)
        except (ChannelClosed, RuntimeFailed):
            await agent.disconnected()  # soon: it is noticed by the one who reads
            continue
        with trio.move_on_after(CONFIRM_TIMEOUT_S) as scope:
            await first_of(attempt.ended_event.wait, agent.disconnected)
        if scope.cancelled_caught:
            return False
    ended = attempt.ended
    return ended is None or ended.get("outcome") == "completed"


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
        link: the migration's own conversation if the token was sent on it; not closed here.
        migration_id: of 16 bytes.
        token: the journaled token.
        log: bound to the migration.

    Cancelled, the token may or may not have arrived; delivering it again does no harm.
    """
    if link is not None:
        try:
            return await _answer_of(link)
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


async def _send_token(link: Link, token: bytes, log: structlog.stdlib.BoundLogger) -> bool:
    try:
        await link.send(Token(token))
    except OptmigError as error:
        log.warning("token_delivery_interrupted", code=error.code, error=error.message)
        return False
    return True


async def _answer_of(link: Link) -> bytes:
    while True:
        message = await link.receive(timeout_s=RESUMED_TIMEOUT_S)
        if isinstance(message, Resumed):
            return message.payload
        if not isinstance(message, Session | Finished):
            raise refusal(message, link.peer)
