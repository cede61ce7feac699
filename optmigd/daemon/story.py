"""An enclave's state, end and output, wherever it has been and is now.

An enclave's owner generation grows by one with every move. Each question names the lowest
generation it means, and a host hands a question on only with a higher one; so no question runs in
a circle, whatever way the enclave took. A host that would hand a question back to the host that
asks says `returned` instead: the asker goes on by itself.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from optmigd.config import Peer
from optmigd.daemon.answers import Params, param
from optmigd.daemon.asking import ask
from optmigd.daemon.host import Host
from optmigd.daemon.registry import LIVE_STATES, Instance
from optmigd.protocol.errors import (
    ChannelError,
    HandoffUncertain,
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
        "dir": str(instance.own_directory),
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
        HandoffUncertain: it was released, and an operator gave up the delivery.
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
        if row.state == "lost":
            raise HandoffUncertain(
                f"enclave {enclave!r} was released to host {host.peer_name(row.moved_to or b'')} "
                "and the delivery given up: nobody here knows whether it runs there",
                enclave=enclave,
            )
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
    least_generation: int,
    skip_bytes: int,
    asker: bytes | None,
    emit: Emit,
    *,
    follow: bool,
) -> Params:
    """Emit the program's output from its beginning.

    What the program has written travels with it, so the host that has it has all of it.

    Args:
        host: this host.
        enclave: its id.
        least_generation: as for `latest`.
        skip_bytes: how much of the output the asker has already.
        asker: the key of the host that asks; None: a client.
        emit: awaited with each piece, of at most OUTPUT_CHUNK_BYTES.
        follow: go on until the program ends, wherever it goes.

    Returns:
        Nothing, or `returned` with the generation in which it went back to the asker.

    Raises:
        UnknownEnclave: this host, or one it has moved to, does not know it.
        OptmigError: the host that has it cannot be asked (when following, it is asked again).
    """
    position = skip_bytes
    delay_s = RETRY_FIRST_S

    async def hand_on(event: Params) -> None:
        nonlocal position
        content = param(event, "content", bytes)
        await emit(content)
        position += len(content)

    while True:
        instance = latest(host, enclave, least_generation)
        row = instance.row
        if row.state != "moved":
            position = await _output_here(host, instance, position, emit, follow=follow)
            if not follow or row.state != "moved":
                return {}
            continue
        if row.moved_to == asker:
            return {"returned": row.generation + 1}
        params: Params = {
            "enclave": enclave,
            "generation": row.generation + 1,
            "skip": position,
            "follow": follow,
        }
        try:
            answer = await ask(host, _successor(host, instance), "logs", params, hand_on)
        except (HostError, ChannelError) as error:
            if not follow or isinstance(error, UnknownHost):
                raise
            host.log.info("logs_interrupted", enclave=enclave, error=error.message)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)
            continue
        if "returned" not in answer:
            return {}
        least_generation = row.generation + 1


async def _output_here(
    host: Host, instance: Instance, position: int, emit: Emit, *, follow: bool
) -> int:
    """Emit the output of this host from `position`; returns where it ended."""
    while True:
        # Asked before reading: what was written before the end is then read for certain.
        complete = not follow or instance.row.state not in LIVE_STATES
        while content := await trio.to_thread.run_sync(_read_at, instance.output, position):
            await emit(content)
            position += len(content)
        if complete:
            return position
        with trio.move_on_after(FOLLOW_POLL_S):
            await host.registry.wait_change()


def _read_at(path: Path, offset: int) -> bytes:
    try:
        # The directory is the enclave's: a link in it must not lead the daemon elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""  # not written to yet, or it has moved away with the enclave
    except OSError as error:
        raise RuntimeFailed(f"the output {path} cannot be read: {error}") from error
    try:
        return os.pread(descriptor, OUTPUT_CHUNK_BYTES, offset)
    finally:
        os.close(descriptor)


def _successor(host: Host, instance: Instance) -> Peer:
    if instance.row.moved_to is None:
        raise RemoteProtocolError(f"enclave {instance.enclave!r} has moved nowhere")
    return known_peer(host, instance.row.moved_to)


def known_peer(host: Host, key: bytes) -> Peer:
    """Return the peer that an enclave came from or went to.

    Raises:
        UnknownHost: it is a peer no longer.
    """
    peer = host.peers.by_key(key)
    if peer is None:
        raise UnknownHost(
            f"the enclave was on a host with key {host.peer_name(key)}, which is no longer a peer: "
            "`optmigctl host add` it again"
        )
    return peer


async def _ignore(_event: Params) -> None:
    return
