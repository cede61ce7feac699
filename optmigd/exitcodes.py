"""The exit codes of `optmigctl` and `optmigd`: what a script may rely on.

They answer the one question a script has after a failed migration: is the enclave still where it
was, and did anything happen to it? docs/operating.md has the same table.
"""

from enum import IntEnum

from optmigd.protocol.errors import OptmigError


class ExitCode(IntEnum):
    """Exit codes; `optmigctl wait` exits with the program's status instead."""

    OK = 0
    ERROR = 1
    """Another error; the message says which."""
    USAGE = 2
    """The command line or a configuration is wrong. Nothing was done."""
    REFUSED = 3
    """Refused or blocked: what was asked cannot be done as things are. Nothing was done."""
    FAILED = 4
    """The migration failed; the enclave runs on where it was."""
    CANCELLED = 5
    """The migration was cancelled; the enclave runs on where it was."""
    UNCERTAIN = 6
    """The enclave was handed over, and nobody has confirmed that it runs."""
    UNREACHABLE = 7
    """No daemon answers on the control socket."""
    INTERRUPTED = 130
    """Ctrl-C ended the command; a migration it was watching goes on."""


_BY_CODE = {
    "usage": ExitCode.USAGE,
    "config": ExitCode.USAGE,
    "blocked": ExitCode.REFUSED,
    "enclave": ExitCode.REFUSED,
    "unknown-enclave": ExitCode.REFUSED,
    "enclave-exists": ExitCode.REFUSED,
    "image-invalid": ExitCode.REFUSED,
    "tracker-unavailable": ExitCode.REFUSED,
    "unknown-host": ExitCode.REFUSED,
    "host-unreachable": ExitCode.REFUSED,
    "host-key-mismatch": ExitCode.REFUSED,
    "version-mismatch": ExitCode.REFUSED,
    "handshake-failed": ExitCode.REFUSED,
    "attestation-failed": ExitCode.REFUSED,
    "already-migrating": ExitCode.REFUSED,
    "released": ExitCode.REFUSED,
    "unconfirmed": ExitCode.REFUSED,
    "cancelled": ExitCode.CANCELLED,
    "uncertain": ExitCode.UNCERTAIN,
    "daemon-unreachable": ExitCode.UNREACHABLE,
    "interrupted": ExitCode.INTERRUPTED,
}

_NOT_STARTED = frozenset({"migration", "failed", "timeout", "not-converging"})
"""Codes of migrations: refused, if the error carries no migration."""


def exit_code(error: OptmigError) -> ExitCode:
    """Return the exit code for an error.

    An error with the field `migration` is the outcome of one that had started: whatever broke it,
    the enclave runs on where it was, unless its code says otherwise.

    Args:
        error: what a daemon answered, or what happened on the way to it.
    """
    known = _BY_CODE.get(error.code)
    if known is not None:
        return known
    if "migration" in error.fields:
        return ExitCode.FAILED
    return ExitCode.REFUSED if error.code in _NOT_STARTED else ExitCode.ERROR
