"""Starting and stopping enclaves of this host."""

from pathlib import Path

import structlog
import trio

from optmigd.daemon.answers import Params, mapping, param, texts
from optmigd.daemon.capacity import refuse_over_limits
from optmigd.daemon.host import Host
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.registry import check_enclave_id
from optmigd.protocol.errors import (
    AlreadyMigrating,
    ConfigError,
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
            },
            timeout_s=LAUNCH_TIMEOUT_S,
        )
        for name in ("measurement", "platform", "tracker"):
            facts[name] = param(answer, name, str)
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

    A migration that has not been released is cancelled first; one that has is given up, which is
    the operator's decision that DESIGN.md speaks of: the enclave may then be lost.

    Raises:
        UnknownEnclave: it is not on this host.
        AlreadyMigrating: it is on its way here: cancel that at its source.
    """
    instance = host.registry.current(enclave)
    row = instance.row
    if row.state == "moved":
        raise elsewhere(host, enclave)
    migration = instance.migration
    if isinstance(migration, OutgoingMigration):
        if migration.released:
            await migration.give_up()
        else:
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


def elsewhere(host: Host, enclave: str) -> UnknownEnclave:
    """Return the error for an operation on an enclave that has moved away."""
    row = host.registry.current(enclave).row
    name = host.peer_name(row.moved_to) if row.moved_to is not None else "?"
    return UnknownEnclave(
        f"enclave {enclave!r} has moved to host {name}: ask the daemon there",
        enclave=enclave,
        host=name,
    )
