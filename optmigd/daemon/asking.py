"""Asking a peer's daemon a question over the link."""

from collections.abc import Awaitable, Callable

from optmigd.config import Peer
from optmigd.daemon.answers import Params, mapping
from optmigd.daemon.host import Host
from optmigd.daemon.link import refusal
from optmigd.protocol.link import Query, QueryEvent, QueryResult

OnEvent = Callable[[Params], Awaitable[None]]


async def ask(
    host: Host, peer: Peer, method: str, params: Params, on_event: OnEvent | None = None
) -> Params:
    """Ask one question and return the answer.

    Args:
        host: this host.
        peer: whom to ask.
        method, params: as contract 2 says.
        on_event: awaited with each part of a long answer. With it the answer may take as long as
            it likes; without, it must come within the link's idle time-out.

    Raises:
        OptmigError: the peer's error, or the link's.
    """
    timeout_s = None if on_event else host.settings.limits.link_idle_timeout_s
    async with await host.dial(peer) as link:
        await link.send(Query(method, params))
        while True:
            message = await link.receive(timeout_s=timeout_s)
            if isinstance(message, QueryResult):
                return mapping(message.result, "result")
            if isinstance(message, QueryEvent) and on_event is not None:
                await on_event(mapping(message.event, "event"))
            else:
                raise refusal(message, peer)
