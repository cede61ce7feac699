"""Starting, stopping and forgetting enclaves of this host."""

from pathlib import Path

import structlog
import trio

from optmigd.daemon.answers import Params, mapping, param, texts
from optmigd.daemon.capacity import refuse_over_limits
from optmigd.daemon.host import Host, Incoming, now_s
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.registry import LIVE_STATES, check_enclave_id
from optmigd.protocol.errors import (
    AlreadyMigrating,
    AlreadyReleased,
    ConfigError,
    EnclaveError,
    EnclaveExists,
    OptmigError,
    UnknownEnclave,
)
from optmigd.protocol.link import MAX_POLICY_BYTES

DEFAULT_MEMORY_BYTES = 4 << 30
FIRST_GENERATION = 1
LAUNCH_TIMEOUT_S = 60.0


async def launch(host: Host, params: Params) -> Params:
    """Start an enclave as contract 3 says, and return `launch`'s result.

    Raises:
        EnclaveExists, ImageInvalid, EnclaveError, TrackerUnavailable, RuntimeFailed: it does not
            run, and nothing is left of it.

    Cancelled, nothing is left of it either.
    """
    enclave = check_enclave_id(param(params, "enclave", str, ""))
    existing = host.registry.find(enclave)
    if existing is not None:
        raise EnclaveExists(
            f"this host has an enclave {enclave!r} already, which is {existing.row.state}: choose "
            "another id",
            enclave=enclave,
        )
    policy = param(params, "policy", bytes, b"")
    if len(policy) > MAX_POLICY_BYTES:
        raise ConfigError(
            f"expected a policy of at most {MAX_POLICY_BYTES} bytes, found {len(policy)}"
        )
    memory_bytes = param(params, "memory_bytes", int, 0) or DEFAULT_MEMORY_BYTES
    refuse_over_limits(host.name, host.settings.limits, host.registry.live(), memory_bytes)
    sha256, image_bytes = await host.images.add(Path(param(params, "image", str)))
    facts: Params = {
        "image_sha256": sha256,
        "image_bytes": image_bytes,
        "memory_bytes": memory_bytes,
        "own_dir": param(params, "dir", str, ""),  # what the program sees, on every host
        "own_dir_here": param(params, "dir", str, ""),
        "shared": texts(params, "shared"),
        "policy": policy,
    }
    if host.registry.find(enclave) is not None:
        raise EnclaveExists(f"this host has an enclave {enclave!r} by now", enclave=enclave)
    instance = await host.registry.create(
        enclave, state="starting", generation=FIRST_GENERATION, facts=facts
    )
    try:
        agent = await host.registry.start(instance)
        answer = await agent.request(
            "launch",
            {
                "enclave": enclave,
                "image": str(host.images.path(sha256)),
                "policy": policy,
                "args": texts(params, "args"),
                "env": mapping(params.get("env") or {}, "env"),
                "memory_bytes": memory_bytes,
                "own_dir": facts["own_dir"],
                "shared": facts["shared"],
                "stdin": param(params, "stdin", str, ""),
                "tracker": param(params, "tracker", str, "auto"),
            },
            timeout_s=LAUNCH_TIMEOUT_S,
        )
        for name in ("measurement", "platform", "tracker"):
            facts[name] = param(answer, name, str)
        instance.row.since_s = now_s()
        await host.registry.running(instance)
    except BaseException:
        with trio.CancelScope(shield=True):
            await host.registry.destroy(instance)
        raise
    structlog.get_logger().info(
        "enclave_launched", enclave=enclave, platform=facts["platform"], tracker=facts["tracker"]
    )
    return {"enclave": enclave} | {
        name: facts[name] for name in ("measurement", "platform", "tracker")
    }


async def stop(host: Host, enclave: str) -> Params:
    """End an enclave of this host and return its exit status.

    A migration that has not been released is cancelled first.

    Raises:
        UnknownEnclave: it is not on this host.
        AlreadyReleased: it was released and nobody has confirmed: `recover` shows the choices.
        AlreadyMigrating: it is on its way here: cancel that at its source.
    """
    instance = host.registry.current(enclave)
    row = instance.row
    if row.state == "moved":
        raise elsewhere(host, enclave)
    migration = instance.migration
    if isinstance(migration, OutgoingMigration):
        await migration.cancel()
    elif migration is not None:
        raise AlreadyMigrating(
            f"enclave {enclave!r} is on its way here from host {migration.record.peer}: cancel the "
            "migration there",
            enclave=enclave,
        )
    if row.state == "running":
        agent = instance.live_agent()
        try:
            await agent.request("stop")
        except OptmigError:
            if not agent.gone.is_set():
                raise
        while instance.row.state == "running":
            await host.registry.wait_change()
    return {"exit_status": instance.row.exit_status}


async def forget(host: Host, enclave: str) -> Params:
    """Remove the record and the files of an enclave that is here no longer.

    Its migrations stay in the journal: they have the receipts, and the confirmation that a source
    may still ask for. An own directory that was named at the launch is the operator's, and stays.

    Raises:
        UnknownEnclave: this host has never had it.
        EnclaveError: it runs here, or is on its way here.
        AlreadyReleased: it was released and nobody has confirmed.
    """
    instance = host.registry.current(enclave)
    row = instance.row
    if any(not arriving.owned for arriving in _arriving(host, enclave)):
        raise AlreadyMigrating(
            f"enclave {enclave!r} is on its way here: `optmigctl recover {enclave}` says how it "
            "stands",
            enclave=enclave,
        )
    if instance.migration is not None and instance.migration.released:
        raise AlreadyReleased(
            f"enclave {enclave!r} was released to host {instance.migration.record.peer}, which has "
            f"not confirmed: this host has the only token. `optmigctl recover {enclave}` shows the "
            "choices",
            enclave=enclave,
        )
    if row.state in LIVE_STATES:
        raise EnclaveError(
            f"enclave {enclave!r} is {row.state} on this host: `optmigctl stop {enclave}` first",
            enclave=enclave,
        )
    for stay in host.registry.stays(enclave):
        await host.registry.destroy(stay)
    structlog.get_logger().info("enclave_forgotten", enclave=enclave, state=row.state)
    way = host.peer_name(row.moved_to) if row.moved_to is not None else None
    return {"enclave": enclave, "state": row.state, "lost_way": way}


def _arriving(host: Host, enclave: str) -> list[Incoming]:
    return [one for one in host.incoming.values() if one.record.enclave == enclave]


def elsewhere(host: Host, enclave: str) -> UnknownEnclave:
    """Return the error for an operation on an enclave that has moved away."""
    row = host.registry.current(enclave).row
    name = host.peer_name(row.moved_to) if row.moved_to is not None else "?"
    return UnknownEnclave(
        f"enclave {enclave!r} has moved to host {name}: ask the daemon there",
        enclave=enclave,
        host=name,
    )
