"""The `sim` platform: evidence signed by software, for machines without a TEE.

It proves nothing to anybody who distrusts the host: there is NO PROTECTION. It exists so that the
whole path from evidence to policy runs everywhere with the fields of the real thing. Its reports
are signed by an Ed25519 root key. The default root is derived from a public label, so two
development hosts agree without any set-up (and so anybody can sign); an own root key, shared by the
hosts of a test fleet, can be given as a file. Production policies leave `sim` out of `platforms`.
"""

import hashlib
import os
import stat
from pathlib import Path

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

from optmigd.enclave_shim.platforms import MEASUREMENT_BYTES, REPORT_DATA_BYTES, Claims
from optmigd.protocol.errors import AttestationFailed, ConfigError

DEVELOPMENT_ROOT_LABEL = b"optmigd sim development root v1: public, protects nothing"
MAX_EVIDENCE_BYTES = 4096
SIGNATURE_LABEL = b"optmigd sim report v1"
UNSIGNED = bytes(32)


class _Report(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    measurement: bytes
    signer: bytes
    security_version: int
    debug: bool
    report_data: bytes


class _Evidence(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    platform: str
    report: bytes
    signature: bytes


class SimPlatform:
    """Software stand-in for a TEE.

    Args:
        root: the 32-byte seed of the root key.
        debug: claim to be a debug enclave (policies refuse that by default).
        security_version: what to claim.

    """

    name = "sim"
    warning = "platform sim: evidence is signed by software; NO PROTECTION from this host"

    def __init__(self, root: bytes, *, debug: bool = False, security_version: int = 1) -> None:
        self._key = SigningKey(root)
        self._debug = debug
        self._security_version = security_version

    @classmethod
    def from_file(cls, path: Path | None) -> "SimPlatform":
        """Use the root key in a file (64 hex digits, mode 0600), or the development root.

        Raises:
            ConfigError: the file cannot be read, is open to others, or holds no key.

        """
        if path is None:
            return cls(hashlib.sha256(DEVELOPMENT_ROOT_LABEL).digest())
        try:
            if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
                raise ConfigError(f"{path} is readable by others; run: chmod 600 {path}")
            root = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError) as error:
            raise ConfigError(f"the sim root key {path} cannot be read: {error}") from error
        if len(root) != 32:
            raise ConfigError(f"{path}: expected 64 hex digits, found {2 * len(root)}")
        return cls(root)

    def evidence(self, measurement: bytes, report_data: bytes) -> bytes:
        """Make evidence; see `Platform`."""
        if len(measurement) != MEASUREMENT_BYTES or len(report_data) != REPORT_DATA_BYTES:
            raise ValueError("measurement or report data of the wrong length")
        report = msgspec.msgpack.encode(
            _Report(measurement, UNSIGNED, self._security_version, self._debug, report_data)
        )
        signature = self._key.sign(SIGNATURE_LABEL + report).signature
        return msgspec.msgpack.encode(_Evidence(self.name, report, signature))

    def verify(self, evidence: bytes) -> Claims:
        """Check evidence; see `Platform`."""
        if len(evidence) > MAX_EVIDENCE_BYTES:
            raise AttestationFailed(f"evidence of {len(evidence)} bytes is too long")
        try:
            outer = msgspec.msgpack.decode(evidence, type=_Evidence)
            if outer.platform != self.name:
                raise AttestationFailed(
                    f"the peer's evidence is from platform {outer.platform[:32]!r}, "
                    f"this host verifies {self.name!r}"
                )
            self._key.verify_key.verify(SIGNATURE_LABEL + outer.report, outer.signature)
            report = msgspec.msgpack.decode(outer.report, type=_Report)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise AttestationFailed("the peer's evidence is malformed") from error
        except (BadSignatureError, ValueError) as error:
            raise AttestationFailed(
                "the peer's evidence is not signed by this host's sim root; "
                "both hosts need the same root key"
            ) from error
        if len(report.measurement) != MEASUREMENT_BYTES or len(report.signer) != 32:
            raise AttestationFailed("the peer's evidence has fields of the wrong length")
        if len(report.report_data) != REPORT_DATA_BYTES:
            raise AttestationFailed("the peer's evidence has report data of the wrong length")
        return Claims(
            platform=outer.platform,
            measurement=report.measurement,
            signer=report.signer,
            security_version=report.security_version,
            debug=report.debug,
            report_data=report.report_data,
        )
