"""How a migration that did not happen is named."""

from optmigd.config import Peer
from optmigd.daemon.answers import Params, mapping
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import (
    ChannelClosed,
    JournalFailed,
    MigrationBlocked,
    MigrationFailed,
    OptmigError,
    ProtocolError,
    RuntimeFailed,
    VersionMismatch,
    from_wire,
)


def reported_error(ended: Params) -> OptmigError | None:
    """Return the error that an agent's `ended` carries, None if it carries none.

    Raises:
        RemoteProtocolError: it has another form than contract 1 says.
    """
    reported = ended.get("error")
    if reported is None:
        return None
    fields = mapping(reported, "error")
    return from_wire(
        str(fields.get("code", MigrationFailed.code)),
        str(fields.get("message", "")),
        mapping(fields.get("fields") or {}, "fields"),
    )


def blocked(enclave: str, peer: Peer, blockers: list[Blocker]) -> MigrationBlocked:
    """Return the error that names every blocker."""
    names = ", ".join(f"{blocker.code} ({blocker.subject})" for blocker in blockers)
    return MigrationBlocked(
        f"enclave {enclave!r} cannot move to host {peer.name}: {names}", blockers=blockers
    )


def as_failure(error: OptmigError) -> OptmigError:
    """Name what only broke the transport or a disk a failed migration; keep what says more."""
    broke = ChannelClosed | JournalFailed | ProtocolError | RuntimeFailed
    if isinstance(error, broke) and not isinstance(error, VersionMismatch):
        return MigrationFailed(f"{error.message}; the enclave runs on here", cause=error.code)
    return error
