"""Answering other daemons: the conversations that come in over the link.

A peer is a pinned host, but it is told only about enclaves that it has sent here or received from
here; and it can decide about none.
"""

import trio

import optmigd
from optmigd.daemon import story
from optmigd.daemon.answers import Params, param, refuse_unknown
from optmigd.daemon.host import Host
from optmigd.daemon.incoming import IncomingMigration
from optmigd.daemon.link import Link, refusal
from optmigd.daemon.nurseries import open_flat_nursery
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.ownership import find_owner
from optmigd.daemon.settling import standing_for
from optmigd.daemon.turns import HOLD_S
from optmigd.protocol.errors import (
    MigrationError,
    MigrationFailed,
    OptmigError,
    RemoteProtocolError,
    UnknownEnclave,
    to_wire,
)
from optmigd.protocol.link import (
    Abort,
    Offer,
    Query,
    QueryError,
    QueryEvent,
    QueryResult,
    Redeliver,
    Resumed,
)
from optmigd.protocol.recovery import answer_outcome, stored_confirmation

_KNOWN = {
    "ping": frozenset[str](),
    "status": frozenset({"enclave", "generation"}),
    "wait": frozenset({"enclave", "generation"}),
    "logs": frozenset({"enclave", "generation", "follow", "skip"}),
    "outcome": frozenset({"migration_id"}),
    "owner": frozenset({"enclave", "generation", "hops"}),
    "standing": frozenset({"migration_id"}),
    "turn": frozenset({"migration_id"}),
}


async def converse(host: Host, link: Link) -> None:
    """Hold the one conversation of an accepted link.

    Raises:
        OptmigError: the link broke, or the peer broke the protocol.
    """
    message = await link.receive(timeout_s=host.settings.limits.link_idle_timeout_s)
    if isinstance(message, Offer):
        await _take_offer(host, link, message)
    elif isinstance(message, Redeliver):
        await _take_redelivery(host, link, message)
    elif isinstance(message, Query):
        await _answer(host, link, message)
    else:
        error = refusal(message, link.peer)
        await link.send(Abort(error.code, error.message))
        raise error


async def _take_offer(host: Host, link: Link, offer: Offer) -> None:
    refused = host.incoming.get(offer.migration_id)
    if refused is not None and refused.turned_away and refused.peer_key == link.peer.key:
        await refused.supersede()
    known = offer.migration_id in host.incoming or await host.journal.migration(offer.migration_id)
    if known:
        text = "this migration has been offered before"
        await link.send(Abort(RemoteProtocolError.code, text))
        raise RemoteProtocolError(f"host {link.peer.name}: {text}")
    for earlier in list(host.incoming.values()):
        if (earlier.record.enclave, earlier.peer_key) == (offer.enclave, link.peer.key):
            await earlier.supersede()
    await IncomingMigration.offered(host, link.peer, offer).run(link, offer)


async def _take_redelivery(host: Host, link: Link, again: Redeliver) -> None:
    try:
        await link.send(Resumed(await _confirmation(host, link, again)))
    except OptmigError as error:
        await link.send(Abort(error.code[:64], error.message[:1000]))
        raise


async def _confirmation(host: Host, link: Link, again: Redeliver) -> bytes:
    incoming = host.incoming.get(again.migration_id)
    if incoming is not None and incoming.peer_key == link.peer.key:
        return await incoming.redeliver(again.payload)
    row = await host.journal.migration(again.migration_id)
    stored = stored_confirmation(row, link.peer.key)
    if stored is None:
        raise MigrationFailed(
            f"host {host.name} has nothing that this token could start: the enclave was lost here "
            "or never arrived"
        )
    return stored


async def _answer(host: Host, link: Link, query: Query) -> None:
    async with open_flat_nursery() as nursery:

        async def stop_when_closed() -> None:
            try:
                await link.receive()
            except OptmigError as error:
                host.log.debug("query_ended", error=error.message)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop_when_closed)
        try:
            result = await _result(host, link, query)
        except OptmigError as error:
            answer = to_wire(error)
            await link.send(QueryError(error.code[:64], error.message[:8000], _fields(answer)))
        else:
            await link.send(QueryResult(result))
        nursery.cancel_scope.cancel()


def _fields(answer: dict[str, object]) -> Params:
    fields = answer["fields"]
    return fields if isinstance(fields, dict) else {}


async def _result(host: Host, link: Link, query: Query) -> Params:
    method, params = query.method, query.params
    if method not in _KNOWN:
        raise RemoteProtocolError(
            f"this host answers {', '.join(sorted(_KNOWN))}, found the question {method!r}"
        )
    refuse_unknown(params, _KNOWN[method], method)
    if method == "ping":
        return {"name": host.name, "version": optmigd.__version__}
    if method == "outcome":
        return await _outcome(host, link, param(params, "migration_id", bytes))
    asker = link.peer.key
    if method == "turn":
        return await _turn(host, link, param(params, "migration_id", bytes))
    if method == "standing":
        return {"standing": await standing_for(host, param(params, "migration_id", bytes), asker)}
    enclave = param(params, "enclave", str)
    if not _may_ask(host, enclave, asker):
        raise UnknownEnclave(
            f"host {host.name} has no enclave {enclave!r} that host {link.peer.name} has sent or "
            "received",
            enclave=enclave,
        )
    if method == "status":
        return await story.status(host, enclave, param(params, "generation", int), asker)
    if method == "owner":
        hops = param(params, "hops", int)
        return await find_owner(host, enclave, param(params, "generation", int), asker, hops)
    if method == "wait":
        return await story.wait_exit(host, enclave, param(params, "generation", int), asker)
    return await _logs(host, link, enclave, params)


def _may_ask(host: Host, enclave: str, asker: bytes) -> bool:
    """Whether this enclave came from the host that asks, went there, or is on its way there."""
    return any(
        asker in (stay.row.came_from, stay.row.moved_to)
        or (
            isinstance(stay.migration, OutgoingMigration)
            and not stay.migration.record.dry_run
            and stay.migration.peer_key == asker
        )
        for stay in host.registry.stays(enclave)
    )


async def _logs(host: Host, link: Link, enclave: str, params: Params) -> Params:
    async def emit(content: bytes) -> None:
        await link.send(QueryEvent({"content": content}))

    return await story.output(
        host,
        enclave,
        param(params, "generation", int),
        max(0, param(params, "skip", int, 0)),
        link.peer.key,
        emit,
        follow=param(params, "follow", bool, False),
    )


async def _turn(host: Host, link: Link, migration_id: bytes) -> Params:
    """Give the source of a migration to here this host's switchover turn, while it listens."""
    incoming = host.incoming.get(migration_id)
    if incoming is None or incoming.peer_key != link.peer.key:
        raise MigrationError(f"no migration {migration_id.hex()} to host {host.name} is under way")
    with host.turns.join(migration_id) as waiter:
        await waiter.turn()
        await link.send(QueryEvent({"turn": True}))
        await trio.sleep(HOLD_S)
    return {}


async def _outcome(host: Host, link: Link, migration_id: bytes) -> Params:
    """Tell a destination whether a token may still come."""
    row = await host.journal.migration(migration_id)
    return {"state": answer_outcome(row, link.peer.key).value}
