"""Every exception of the project, each with a stable code.

The code is what crosses a wire and what programs compare; the message is for a person and says
what was expected, what was found and what to do next; the fields are for logs and programs. A peer
gets the code only (`Abort` of the link): details of a refusal would help an
attacker, and the local log has them.
"""

from collections.abc import Mapping

from optmigd.protocol.blockers import Blocker, blockers_from_fields


class OptmigError(Exception):
    """The root of all errors of this project.

    Args:
        message: for a person.
        fields: for programs and logs; values must be what msgpack can carry, or `Blocker`s.
    """

    code: str = "error"

    def __init__(self, message: str, /, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, object] = fields


class ConfigError(OptmigError):
    """A setting, a file of settings or a key is wrong."""

    code = "config"


class ProtocolError(OptmigError):
    """Somebody broke the protocol."""

    code = "protocol"


class LocalProtocolError(ProtocolError):
    """This side asked for something the protocol forbids: a bug here."""

    code = "local-protocol"


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids."""

    code = "remote-protocol"


class VersionMismatch(RemoteProtocolError):
    """No protocol version is common; fields `ours` and `theirs` are (lowest, highest)."""

    code = "version-mismatch"


class ChannelError(OptmigError):
    """A secure channel could not be made or has broken."""

    code = "channel"


class HandshakeFailed(ChannelError):
    """The peer's handshake message is not what a holder of the right keys would send."""

    code = "handshake-failed"


class AttestationFailed(ChannelError):
    """The peer's evidence is missing, false, or refused by the owner's policy."""

    code = "attestation-failed"


class DecryptFailed(ChannelError):
    """A sealed message was changed, repeated, dropped or reordered on its way."""

    code = "decrypt-failed"


class ChannelClosed(ChannelError):
    """The channel has ended, or an earlier error has made it unusable."""

    code = "channel-closed"


class EnclaveError(OptmigError):
    """Something about one enclave."""

    code = "enclave"


class UnknownEnclave(EnclaveError):
    """This host has no enclave of that name."""

    code = "unknown-enclave"


class EnclaveExists(EnclaveError):
    """This host already has an enclave of that name."""

    code = "enclave-exists"


class ImageInvalid(EnclaveError):
    """The image is no enclave image, or not the expected one."""

    code = "image-invalid"


class TrackerUnavailable(EnclaveError):
    """This kernel cannot track dirty pages; the message names what is missing."""

    code = "tracker-unavailable"


class RuntimeFailed(EnclaveError):
    """The application or its runtime did not do what it was told."""

    code = "runtime-failed"


class MigrationError(OptmigError):
    """A migration did not happen; unless a subclass says otherwise, the enclave runs on."""

    code = "migration"


class MigrationBlocked(MigrationError):
    """Preflight found blockers; field `blockers` lists every one."""

    code = "blocked"

    @property
    def blockers(self) -> list[Blocker]:
        """All reasons at once."""
        return blockers_from_fields(self.fields.get("blockers"))


class NotConverging(MigrationError):
    """The program writes faster than its pages can be sent, and the chosen strategy is to abort."""

    code = "not-converging"


class MigrationCancelled(MigrationError):
    """Somebody cancelled it before the point of no return."""

    code = "cancelled"


class MigrationFailed(MigrationError):
    """Something failed before the point of no return."""

    code = "failed"


class MigrationTimeout(MigrationError):
    """It took longer than allowed."""

    code = "timeout"


class AlreadyMigrating(MigrationError):
    """Another migration of the same enclave is in progress."""

    code = "already-migrating"


class HandoffUncertain(MigrationError):
    """The source has let go and the destination has not confirmed: the token is delivered again."""

    code = "uncertain"


class AlreadyReleased(MigrationError):
    """The point of no return is past; the move can only be completed."""

    code = "released"


class Unconfirmed(MigrationError):
    """A decision that cannot be taken back was asked for without its confirmation."""

    code = "unconfirmed"


class JournalFailed(OptmigError):
    """The daemon's journal could not be written: a full disk, most likely."""

    code = "journal"


class HostError(OptmigError):
    """Something about another host."""

    code = "host"


class UnknownHost(HostError):
    """No peer of that name is configured."""

    code = "unknown-host"


class HostUnreachable(HostError):
    """No daemon answers at the peer's address."""

    code = "host-unreachable"


class HostKeyMismatch(HostError):
    """The host that answers has not the key that is pinned for it."""

    code = "host-key-mismatch"


def _classes(root: type[OptmigError]) -> dict[str, type[OptmigError]]:
    found = {root.code: root}
    for subclass in root.__subclasses__():
        found.update(_classes(subclass))
    return found


_BY_CODE = _classes(OptmigError)


def from_wire(code: str, message: str, fields: Mapping[str, object]) -> OptmigError:
    """Return the error that a report names, as its own class where the code is known.

    Args:
        code: an error code; one that is not known gives an `OptmigError` that carries it.
        message: what the reporter said.
        fields: the reporter's fields; `blockers` become `Blocker` objects.
    """
    named: dict[str, object] = {str(key): value for key, value in fields.items()}
    if "blockers" in named:
        named["blockers"] = blockers_from_fields(named["blockers"])
    error = _BY_CODE.get(code, OptmigError)(message, **named)
    error.code = code
    return error


def to_wire(error: OptmigError) -> dict[str, object]:
    """Return `{code, message, fields}` of an error, as control connections carry it."""
    fields = {
        key: [item.as_fields() if isinstance(item, Blocker) else item for item in value]
        if isinstance(value, list | tuple)
        else value
        for key, value in error.fields.items()
    }
    return {"code": error.code, "message": error.message, "fields": fields}
