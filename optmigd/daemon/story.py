"""An enclave's state, end and output, wherever it has been and is now.

An enclave's owner generation grows by one with every move. Each question names the lowest (and for
output also the highest) generation it means, and a host hands a question on only with a narrower
range; so no question runs in a circle, whatever way the enclave took. A host that would hand a
question back to the host that asks says `returned` instead: the asker goes on by itself.
"""

import os
from collections.abc import Awaitable, Callable

import trio

from optmigd.config import Peer
from optmigd.daemon.answers import Params, param
from optmigd.daemon.asking import ask
from optmigd.daemon.host import Host
from optmigd.daemon.registry import LIVE_STATES, Instance
from optmigd.protocol.errors import (
    ChannelError,
    HostError,
    RemoteProtocolError,
    RuntimeFailed,
    UnknownEnclave,
    UnknownHost,
)

OUTPUT_CHUNK_BYTES = 48 * 1024
FOLLOW_POLL_S = 0.1
RETRY_FIRST_S = 0.2
RETRY_LAST_S = 10.0

Emit = Callable[[bytes], Awaitable[None]]


def latest(host: Host, enclave: str, least_generation: int) -> Instance:
    """Return the instance that speaks for an enclave, in that generation or a later one.

    Raises:
        UnknownEnclave: this host has none such.
    """
    instance = host.registry.current(enclave)
    if instance.row.generation < least_generation:
        raise UnknownEnclave(
            f"expected enclave {enclave!r} in owner generation {least_generation} or later, host "
            f"{host.name} knows it up to {instance.row.generation} only",
            enclave=enclave,
        )
    return instance


async def describe(host: Host, instance: Instance) -> Params:
    """Return the object of `status` for an enclave of this host."""
    row = instance.row
    live = await instance.agent_status() if row.state == "running" else {}
    record = instance.migration.record if instance.migration else instance.last_migration
    state = row.state
    if instance.migration is not None and not instance.migration.record.dry_run:
        state = "migrating"
    return {
        "enclave": row.enclave,
        "state": {"starting": "running", "incoming": "migrating"}.get(state, state),
        "host": host.peer_name(row.moved_to) if row.moved_to else host.name,
        "platform": row.facts.get("platform", ""),
        "measurement": row.facts.get("measurement", ""),
        "tracker": row.facts.get("tracker", ""),
        "memory_bytes": row.facts.get("memory_bytes", 0),
        "resident_bytes": live.get("resident_bytes", 0),
        "exit_status": row.exit_status,
        "owner_generation": row.generation,
        "migration": None if record is None else record.summary(),
        "dir": row.facts.get("own_dir", ""),
        "blockers": live.get("blockers", []),
    }


async def status(host: Host, enclave: str, least_generation: int, asker: bytes | None) -> Params:
    """Return the status of an enclave, from the host that has it if that answers.

    Raises:
        UnknownEnclave: this host has never had it.
    """
    while True:
        instance = latest(host, enclave, least_generation)
        row = instance.row
        if row.state != "moved":
            return await describe(host, instance)
        least_generation = row.generation + 1
        if row.moved_to == asker:
            return {"returned": least_generation}
        try:
            peer = _successor(host, instance)
            params = {"enclave": enclave, "generation": least_generation}
            answer = await ask(host, peer, "status", params)
        except (HostError, ChannelError, UnknownEnclave) as error:
            host.log.info("status_not_forwarded", enclave=enclave, error=error.message)
            return await describe(host, instance)
        if "returned" not in answer:
            return answer


async def wait_exit(host: Host, enclave: str, least_generation: int, asker: bytes | None) -> Params:
    """Return the exit status of an enclave once it has ended, wherever that is.

    Raises:
        UnknownEnclave: this host, or one it has moved to, does not know it.
        RuntimeFailed: it ended, and nobody knows how.
    """
    delay_s = RETRY_FIRST_S
    while True:
        instance = latest(host, enclave, least_generation)
        row = instance.row
        if row.state == "exited":
            if row.exit_status is None:
                raise RuntimeFailed(
                    f"the shim agent of enclave {enclave!r} ended without an exit status on host "
                    f"{host.name}: see {instance.directory / 'agent.log'} there",
                    enclave=enclave,
                )
            return {"exit_status": row.exit_status, "host": host.name}
        if row.state != "moved":
            await host.registry.wait_change()
            continue
        least_generation = row.generation + 1
        if row.moved_to == asker:
            return {"returned": least_generation}
        params = {"enclave": enclave, "generation": least_generation}
        try:
            answer = await ask(host, _successor(host, instance), "wait", params, _ignore)
        except (HostError, ChannelError) as error:
            if isinstance(error, UnknownHost):
                raise
            host.log.info("wait_interrupted", enclave=enclave, error=error.message)
            least_generation = row.generation
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)
            continue
        if "returned" not in answer:
            return answer


async def output(
    host: Host,
    enclave: str,
    first: int,
    last: int | None,
    asker: bytes | None,
    emit: Emit,
    *,
    follow: bool,
) -> Params:
    """Emit the program's output of the generations `first` to `last`, in order.

    Args:
        host: this host.
        enclave: its id.
        first: the lowest generation.
        last: the highest; None: up to the present one.
        asker: the key of the host that asks; None: a client.
        emit: awaited with each piece, of at most OUTPUT_CHUNK_BYTES.
        follow: go on until the program ends.

    Returns:
        Nothing, or `returned` with the generation that is the asker's own.

    Raises:
        UnknownEnclave: this host has never had it.
        OptmigError: another host that has a part of it cannot be asked.
    """
    host.registry.current(enclave)
    while last is None or first <= last:
        stays = host.registry.stays(enclave)
        stay = next((stay for stay in stays if stay.row.generation >= first), None)
        if stay is None or (last is not None and stay.row.generation > last):
            # The rest, if there is one, is where we let it go to.
            stay = next((old for old in stays if old.row.generation == first - 1), None)
            if stay is None or stay.row.state != "moved":
                return {}
            if stay.row.moved_to == asker:
                return {"returned": first}
            answer = await _output_elsewhere(
                host, _successor(host, stay), enclave, first, last, emit, follow=follow
            )
            returned = param(answer, "returned", int, 0)
            if returned <= first:
                return {}
            first = returned
            continue
        if stay.row.generation > first and stay.row.came_from is not None:
            before = stay.row.generation - 1
            peer = _peer(host, stay.row.came_from)
            await _output_elsewhere(host, peer, enclave, first, before, emit, follow=False)
        await _output_here(host, stay, emit, follow=follow)
        first = stay.row.generation + 1
    return {}


async def _output_elsewhere(
    host: Host, peer: Peer, enclave: str, first: int, last: int | None, emit: Emit, *, follow: bool
) -> Params:
    received_bytes = 0
    delay_s = RETRY_FIRST_S

    async def on_event(event: Params) -> None:
        nonlocal received_bytes
        content = param(event, "content", bytes)
        await emit(content)
        received_bytes += len(content)

    while True:
        params: Params = {
            "enclave": enclave,
            "first": first,
            "follow": follow,
            "skip": received_bytes,
        }
        if last is not None:
            params["last"] = last
        try:
            return await ask(host, peer, "logs", params, on_event)
        except (HostError, ChannelError) as error:
            if not follow:
                raise
            host.log.info("logs_interrupted", enclave=enclave, error=error.message)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)


async def _output_here(host: Host, stay: Instance, emit: Emit, *, follow: bool) -> None:
    offset = 0
    while True:
        # Asked before reading: what was written before the end is then read for certain.
        complete = not follow or stay.row.state not in LIVE_STATES
        while content := await trio.to_thread.run_sync(_read_at, stay, offset):
            await emit(content)
            offset += len(content)
        if complete:
            return
        with trio.move_on_after(FOLLOW_POLL_S):
            await host.registry.wait_change()


def _read_at(stay: Instance, offset: int) -> bytes:
    try:
        # The directory is the enclave's: a link in it must not lead the daemon elsewhere.
        descriptor = os.open(stay.output, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RuntimeFailed(f"the output of {stay.enclave!r} cannot be read: {error}") from error
    try:
        return os.pread(descriptor, OUTPUT_CHUNK_BYTES, offset)
    finally:
        os.close(descriptor)


def _successor(host: Host, instance: Instance) -> Peer:
    if instance.row.moved_to is None:
        raise RemoteProtocolError(f"enclave {instance.enclave!r} has moved nowhere")
    return _peer(host, instance.row.moved_to)


def _peer(host: Host, key: bytes) -> Peer:
    peer = host.peers.by_key(key)
    if peer is None:
        raise UnknownHost(
            f"the enclave was on a host with key {host.peer_name(key)}, which is no longer a peer: "
            "`optmigctl host add` it again"
        )
    return peer


async def _ignore(_event: Params) -> None:
    return
