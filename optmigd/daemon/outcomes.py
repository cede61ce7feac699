"""How a migration that did not happen is named."""

from optmigd.config import Peer
from optmigd.daemon.agents import AgentConnectionLost
from optmigd.daemon.answers import Params, mapping, merged
from optmigd.daemon.journal import InstanceRow
from optmigd.protocol.blockers import Blocker, blockers_from_fields
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


def report_of(ended: Params | None) -> Params:
    """Return the report that an agent's `ended` carries; empty: none, or it has said nothing.

    Raises:
        RemoteProtocolError: it has another form than contract 1 says.
    """
    return mapping((ended or {}).get("report") or {}, "report")


def why_not_moved(
    row: InstanceRow,
    peer: Peer,
    ended: Params,
    blockers: list[Blocker],
    error: OptmigError | None,
    *,
    dry_run: bool,
) -> OptmigError | None:
    """Return why a migration that released nothing did not happen; None: nothing stands against it.

    Args:
        row: the enclave's.
        peer: where it was to go.
        ended: what its agent has said of the end; empty: nothing.
        blockers: that the daemons know of.
        error: that ended it, if one did.
        dry_run: whether it was only to be checked.

    Raises:
        RemoteProtocolError: `ended` has another form than contract 1 says.
    """
    if error is None or (
        # The agent after one that crashed knows more than that the connection broke.
        isinstance(error, AgentConnectionLost) and ended.get("outcome") == "failed"
    ):
        error = reported_error(ended) or error
    blockers = merged(
        blockers,
        blockers_from_fields(report_of(ended).get("blockers")),
        error.blockers if isinstance(error, MigrationBlocked) else [],
    )
    if blockers and (error is None or isinstance(error, MigrationBlocked)):
        error = _blocked(row.enclave, peer, blockers)
    if row.state == "exited":
        error = MigrationFailed(
            f"the program of enclave {row.enclave!r} ended during the migration",
            exit_status=row.exit_status,
        )
    if error is None and not dry_run:
        error = MigrationFailed("the shim agent ended the migration without a reason")
    return error and _as_failure(error)


def _blocked(enclave: str, peer: Peer, blockers: list[Blocker]) -> MigrationBlocked:
    """Return the error that names every blocker."""
    names = ", ".join(f"{blocker.code} ({blocker.subject})" for blocker in blockers)
    return MigrationBlocked(
        f"enclave {enclave!r} cannot move to host {peer.name}: {names}", blockers=blockers
    )


def _as_failure(error: OptmigError) -> OptmigError:
    """Name what only broke the transport or a disk a failed migration; keep what says more."""
    broke = ChannelClosed | JournalFailed | ProtocolError | RuntimeFailed
    if isinstance(error, broke) and not isinstance(error, VersionMismatch):
        return MigrationFailed(f"{error.message}; the enclave runs on here", cause=error.code)
    return error
