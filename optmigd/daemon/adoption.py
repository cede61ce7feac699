"""Taking up, at the start, what an earlier daemon of this host left running.

The shim agents have outlived it. The journal says what each instance was, the agent what it is now;
where they differ the agent is right about the program, and the journal about who owns it.
"""

from optmigd.config import Peer
from optmigd.daemon.host import Host
from optmigd.daemon.incoming import IncomingMigration
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.last_word import close_with_last_word
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.registry import Instance
from optmigd.protocol.errors import OptmigError
from optmigd.protocol.recovery import (
    UNSETTLED,
    Fate,
    closing_state,
    fate_at_start,
    needs_last_word,
)


async def adopt(host: Host) -> None:
    """Restore every instance, its agent and its interrupted migration from the journal."""
    unfinished = await host.journal.unfinished_migrations()
    interrupted = {(row.enclave, row.number): row for row in unfinished if row.state != UNSETTLED}
    instances = [host.registry.restore(row) for row in await host.journal.instances()]
    for instance in instances:
        row = interrupted.pop((instance.enclave, instance.row.number), None)
        await _adopt_one(host, instance, row)
    for row in interrupted.values():
        await _forget(host, row)
    for row in unfinished:
        if row.state == UNSETTLED:
            close_with_last_word(host, row)
    await host.registry.remove_strays()
    used = [instance.row.facts["image_sha256"] for instance in host.registry.live()]
    host.images.remove_unused(used)


async def _adopt_one(host: Host, instance: Instance, row: MigrationRow | None) -> None:
    state = instance.row.state
    log = host.log.bind(enclave=instance.enclave)
    agent = await host.registry.adopt(instance)
    fate = fate_at_start(state, row, agent_alive=agent is not None)
    if fate is Fate.LEFTOVER:
        if row is not None:
            await _forget(host, row)
        if agent is not None:
            host.registry.supervise(agent)
            host.nursery.start_soon(_end_leftover, host, instance)
        return
    if fate is Fate.REMOVE:
        if agent is not None:
            host.registry.supervise(agent)
        if row is not None:
            await _forget(host, row)
        await host.registry.destroy(instance)
        log.info("unfinished_instance_removed", state=state)
        return
    if row is not None:
        _take_up(host, instance, row)
    if agent is not None:
        host.registry.supervise(agent)
        log.info("agent_adopted", pid=agent.process.pid)
        if state == "running":
            host.nursery.start_soon(_ask_whether_exited, host, instance)
    elif fate is Fate.LOST:
        log.warning("agent_gone", state=state)
        await host.registry.exited(instance, None)


def _take_up(host: Host, instance: Instance, row: MigrationRow) -> None:
    peer = host.peers.by_key(row.peer_key) or Peer(
        name=host.peer_name(row.peer_key), host="", port=0, key=row.peer_key
    )
    if row.role == "source":
        outgoing = OutgoingMigration.restored(host, instance, peer, row)
        instance.migration = outgoing
        host.nursery.start_soon(outgoing.run_restored)
    else:
        incoming = IncomingMigration.restored(host, peer, row, instance)
        if instance.row.state == "incoming":
            instance.migration = incoming
        host.incoming[row.migration_id] = incoming
        host.nursery.start_soon(incoming.run_restored)


async def _end_leftover(host: Host, instance: Instance) -> None:
    """End an agent whose enclave is no longer here: the daemon was stopped before it could."""
    if instance.row.state == "moved":
        await host.registry.clear(instance)
    elif instance.agent is not None:
        await instance.agent.shut_down()


async def _ask_whether_exited(host: Host, instance: Instance) -> None:
    """The program may have ended while no daemon listened."""
    if instance.agent is None:
        return
    try:
        status = await instance.agent.request("status")
    except OptmigError as error:
        host.log.info("agent_silent", enclave=instance.enclave, error=error.message)
        return
    exit_status = status.get("exit_status")
    exited = status.get("state") in ("exited", "failed")
    if exited and instance.row.state == "running":
        known = exit_status if isinstance(exit_status, int) else None
        await host.registry.exited(instance, known)


async def _forget(host: Host, row: MigrationRow) -> None:
    """Close the record of a migration of which nothing is left."""
    row.state = UNSETTLED if needs_last_word(row) else closing_state(row)
    await host.journal.write_soon(host.nursery, lambda: host.journal.save_migration(row))
