"""What a client may ask: contract 3, one function a method.

Nothing here knows of sockets or frames: `control.py` calls `answer` for each request, in a task of
its own, and hands on what it emits.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import optmigd
from optmigd.config import format_address
from optmigd.daemon import launching, ownership, settling, story
from optmigd.daemon.answers import Params, param, refuse_unknown
from optmigd.daemon.host import Host
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.nurseries import open_flat_nursery
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.registry import Instance
from optmigd.daemon.source import CHANGEABLE, MigrateOptions
from optmigd.protocol.errors import (
    AlreadyMigrating,
    MigrationError,
    MigrationFailed,
    RemoteProtocolError,
    UnknownHost,
)
from optmigd.protocol.link import MAX_STREAMS

Emit = Callable[[Params], Awaitable[None]]


@dataclass(frozen=True)
class Context:
    """What a request may need: this host, and where it listens."""

    host: Host
    address: tuple[str, int]
    emit: Emit


async def answer(context: Context, method: str, params: Params) -> Params:
    """Carry out one request and return its result.

    Raises:
        OptmigError: the answer is an error.

    Cancelled, it stops watching; a migration goes on.
    """
    handler, known = _METHODS.get(method, (None, frozenset[str]()))
    if handler is None:
        raise RemoteProtocolError(
            f"expected one of the methods {', '.join(sorted(_METHODS))}, found {method!r}"
        )
    refuse_unknown(params, known, method)
    return await handler(context, params)


async def _ping(context: Context, params: Params) -> Params:
    host = context.host
    return {
        "name": host.name,
        "version": optmigd.__version__,
        "platform": host.settings.platform.name,
    }


async def _launch(context: Context, params: Params) -> Params:
    return await launching.launch(context.host, params)


async def _list(context: Context, params: Params) -> Params:
    host = context.host
    found: dict[str, Params] = {}

    async def describe(instance: Instance) -> None:
        found[instance.enclave] = await story.describe(host, instance)

    async with open_flat_nursery() as nursery:
        for instance in host.registry:
            nursery.start_soon(describe, instance)
    return {"enclaves": [found[enclave] for enclave in sorted(found)]}


async def _status(context: Context, params: Params) -> Params:
    return await story.status(context.host, param(params, "enclave", str), 0, None)


async def _logs(context: Context, params: Params) -> Params:
    async def emit(content: bytes) -> None:
        await context.emit({"content": content})

    return await story.output(
        context.host,
        param(params, "enclave", str),
        0,
        0,
        None,
        emit,
        follow=param(params, "follow", bool, False),
    )


async def _wait(context: Context, params: Params) -> Params:
    return await story.wait_exit(context.host, param(params, "enclave", str), 0, None)


async def _stop(context: Context, params: Params) -> Params:
    return await launching.stop(context.host, param(params, "enclave", str))


async def _owner(context: Context, params: Params) -> Params:
    return await ownership.find_owner(context.host, param(params, "enclave", str), 0, None)


async def _recover(context: Context, params: Params) -> Params:
    return await settling.recover(context.host, params)


async def _forget(context: Context, params: Params) -> Params:
    return await launching.forget(context.host, param(params, "enclave", str))


async def _check(context: Context, params: Params) -> Params:
    options = _options(context.host, params, dry_run=True)
    migration = _start(context.host, params, options)
    blockers, forecast = await migration.wait_checked()
    instance = context.host.registry.current(param(params, "enclave", str))
    status = await instance.live_agent().request("status")
    return {
        "blockers": [blocker.as_fields() for blocker in blockers],
        "forecast": forecast,
        "holds": status.get("holds", {}),
        "refused_calls": status.get("refused_calls", []),
    }


async def _migrate(context: Context, params: Params) -> Params:
    options = _options(context.host, params, dry_run=False)
    migration = _start(context.host, params, options)
    if param(params, "detach", bool, False):
        return migration.record.result()
    async with open_flat_nursery() as nursery:
        with context.host.hub.subscribe(migration_id=migration.migration_id.hex()) as events:

            async def hand_on() -> None:
                async for event in events:
                    await context.emit(event)

            nursery.start_soon(hand_on)
            try:
                return await migration.wait_result()
            finally:
                nursery.cancel_scope.cancel()
    raise AssertionError("the block above returns or raises")


async def _cancel(context: Context, params: Params) -> Params:
    return await _outgoing(_here(context.host, params), "cancel the migration").cancel()


async def _set(context: Context, params: Params) -> Params:
    host = context.host
    instance = (
        _by_migration(host, param(params, "migration_id", str))
        if "migration_id" in params
        else _here(host, params)
    )
    migration = _outgoing(instance, "change the migration")
    changes: Params = {
        name: param(params, name, kind)
        for name, kind in (("downtime_limit_ms", float), ("max_bandwidth", int), ("on_stall", str))
        if name in params
    }
    _refuse_wrong(params, _faults(**changes))
    if not changes:
        raise RemoteProtocolError(f"expected one of {', '.join(CHANGEABLE)} to change")
    return await migration.change(changes)


def _by_migration(host: Host, migration_id: str) -> Instance:
    for instance in host.registry.live():
        migration = instance.migration
        if migration is not None and migration.record.migration_id.hex() == migration_id:
            return instance
    raise MigrationError(f"no migration {migration_id} is in progress here")


def _outgoing(instance: Instance, what: str) -> OutgoingMigration:
    migration = instance.migration
    if isinstance(migration, OutgoingMigration):
        return migration
    if migration is not None:
        raise MigrationError(
            f"enclave {instance.enclave!r} is on its way here: {what} on host "
            f"{migration.record.peer}",
            enclave=instance.enclave,
        )
    raise MigrationError(
        f"no migration of enclave {instance.enclave!r} is in progress", enclave=instance.enclave
    )


async def _watch(context: Context, params: Params) -> Params:
    enclave = param(params, "enclave", str, "")
    if enclave:
        context.host.registry.current(enclave)
    with context.host.hub.subscribe(enclave=enclave) as events:
        async for event in events:
            await context.emit(event)
    return {}


async def _host_identity(context: Context, params: Params) -> Params:
    host = context.host
    return {
        "name": host.name,
        "listen": host.settings.host.advertise or format_address(*context.address),
        "key": host.identity.key_text,
        "fingerprint": host.identity.fingerprint,
    }


async def _host_peers(context: Context, params: Params) -> Params:
    return {
        "peers": [
            {
                "name": peer.name,
                "address": peer.address,
                "key": peer.key_text,
                "fingerprint": peer.fingerprint,
            }
            for peer in context.host.peers.peers
        ]
    }


async def _host_add(context: Context, params: Params) -> Params:
    peer = context.host.peers.add(
        param(params, "name", str), param(params, "address", str), param(params, "key", str)
    )
    context.host.log.info("peer_added", peer=peer.name, fingerprint=peer.fingerprint)
    return {}


async def _host_remove(context: Context, params: Params) -> Params:
    peer = context.host.peers.remove(param(params, "name", str))
    context.host.log.info("peer_removed", peer=peer.name, fingerprint=peer.fingerprint)
    return {}


async def _receipt(context: Context, params: Params) -> Params:
    journal = context.host.journal
    row: MigrationRow | None
    if "migration_id" in params:
        text = param(params, "migration_id", str)
        try:
            row = await journal.migration(bytes.fromhex(text))
        except ValueError:
            row = None
        what = f"migration {text}"
    else:
        enclave = param(params, "enclave", str)
        context.host.registry.current(enclave)
        row = await journal.completed_migration(enclave)
        what = f"enclave {enclave!r}"
    if row is None or row.state != "completed":
        raise MigrationError(f"this host has no receipt of {what}: no completed migration of it")
    return row.result | {"role": row.role, "peer": context.host.peer_name(row.peer_key)}


def _here(host: Host, params: Params) -> Instance:
    enclave = param(params, "enclave", str)
    instance = host.registry.current(enclave)
    if instance.row.state == "moved":
        raise launching.elsewhere(host, enclave)
    return instance


def _options(host: Host, params: Params, *, dry_run: bool) -> MigrateOptions:
    defaults = host.settings.migration
    options = MigrateOptions(
        mode=param(params, "mode", str, "precopy"),
        downtime_limit_ms=param(params, "downtime_limit_ms", float, defaults.downtime_limit_ms),
        max_bandwidth=param(params, "max_bandwidth", int, 0),
        streams=param(params, "streams", int, defaults.streams),
        timeout_s=param(params, "timeout_s", float, defaults.timeout_s),
        on_stall=param(params, "on_stall", str, defaults.on_stall),
        verify=param(params, "verify", bool, False),
        dry_run=dry_run,
    )
    faults = [
        (options.mode not in ("precopy", "stop-and-copy"), "mode: precopy or stop-and-copy"),
        (not 1 <= options.streams <= MAX_STREAMS, f"streams: 1 to {MAX_STREAMS}"),
        (not options.timeout_s >= 0, "timeout_s: 0 or more"),
    ]
    _refuse_wrong(params, [*faults, *_faults(**options.changeable())])
    return options


def _faults(
    *, downtime_limit_ms: float = 1.0, max_bandwidth: int = 0, on_stall: str = "abort"
) -> list[tuple[bool, str]]:
    return [
        (on_stall not in ("throttle", "switch", "abort"), "on_stall: throttle, switch or abort"),
        (not downtime_limit_ms > 0, "downtime_limit_ms: above 0"),
        (max_bandwidth < 0, "max_bandwidth: 0 or more"),
    ]


def _refuse_wrong(params: Params, faults: list[tuple[bool, str]]) -> None:
    wrong = [text for fault, text in faults if fault]
    if wrong:
        raise RemoteProtocolError(f"expected {'; '.join(wrong)}; found {params}")


def _start(host: Host, params: Params, options: MigrateOptions) -> OutgoingMigration:
    """Check what can be checked at once, and start the migration's task."""
    instance = _here(host, params)
    peer = host.peers.by_name(param(params, "host", str))
    if peer.key == host.identity.public:
        raise UnknownHost(f"{peer.name!r} is this very host: name another", host=peer.name)
    if instance.migration is not None:
        record = instance.migration.record
        raise AlreadyMigrating(
            f"another migration of enclave {instance.enclave!r} is in progress, "
            f"{'from' if record.role == 'destination' else 'to'} host {record.peer}: wait for it "
            "or cancel it",
            enclave=instance.enclave,
            migration_id=record.migration_id.hex(),
        )
    if instance.row.state != "running":
        raise MigrationFailed(
            f"enclave {instance.enclave!r} is not running, it is {instance.row.state}",
            enclave=instance.enclave,
        )
    migration = OutgoingMigration(host, instance, peer, options)
    instance.migration = migration
    host.nursery.start_soon(migration.run)
    return migration


_Handler = Callable[[Context, Params], Awaitable[Params]]
_MOVE = frozenset({"enclave", "host"})
_METHODS: dict[str, tuple[_Handler, frozenset[str]]] = {
    "ping": (_ping, frozenset()),
    "launch": (
        _launch,
        frozenset(
            {
                "image",
                "enclave",
                "memory_bytes",
                "dir",
                "shared",
                "policy",
                "env",
                "args",
                "stdin",
                "tracker",
            }
        ),
    ),
    "list": (_list, frozenset()),
    "status": (_status, frozenset({"enclave"})),
    "logs": (_logs, frozenset({"enclave", "follow"})),
    "wait": (_wait, frozenset({"enclave"})),
    "stop": (_stop, frozenset({"enclave"})),
    "owner": (_owner, frozenset({"enclave"})),
    "recover": (_recover, frozenset({"enclave", "migration_id", "decision", "confirmed"})),
    "forget": (_forget, frozenset({"enclave"})),
    "check": (_check, _MOVE),
    "migrate": (
        _migrate,
        _MOVE
        | {
            "mode",
            "downtime_limit_ms",
            "max_bandwidth",
            "streams",
            "timeout_s",
            "on_stall",
            "verify",
            "detach",
        },
    ),
    "cancel": (_cancel, frozenset({"enclave"})),
    "set": (_set, frozenset({"enclave", "migration_id", *CHANGEABLE})),
    "watch": (_watch, frozenset({"enclave"})),
    "host_identity": (_host_identity, frozenset()),
    "host_peers": (_host_peers, frozenset()),
    "host_add": (_host_add, frozenset({"name", "address", "key"})),
    "host_remove": (_host_remove, frozenset({"name"})),
    "receipt": (_receipt, frozenset({"enclave", "migration_id"})),
}
