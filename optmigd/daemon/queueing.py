"""What may have happened to a migration while it stood in the queue."""

from optmigd.config import Peer
from optmigd.daemon.host import Host
from optmigd.daemon.registry import Instance
from optmigd.protocol.errors import MigrationFailed, UnknownHost


async def program_ended(host: Host, instance: Instance) -> None:
    """Return when the program runs here no longer; cancellation is safe."""
    while instance.row.state == "running":
        await host.registry.wait_change()


def peer_after_queue(host: Host, instance: Instance, peer: Peer) -> Peer:
    """Return the destination as the peers have it now: its address may have changed.

    Raises:
        MigrationFailed: the program has ended.
        UnknownHost: the destination is a peer no longer.
    """
    if instance.row.state != "running":
        raise MigrationFailed(f"enclave {instance.enclave!r} no longer runs here")
    present = host.peers.by_key(peer.key)
    if present is None:
        raise UnknownHost(
            f"host {peer.name} was removed from the peers while the migration was queued",
            host=peer.name,
        )
    return present
