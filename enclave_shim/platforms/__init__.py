"""Platforms: where evidence about an enclave comes from, and how it is appraised.

In the words of RFC 9334 a platform plays the attester (it makes evidence for the enclave it runs
in) and the verifier (it checks a peer's evidence and states the claims it proves). The relying
party is the owner's policy (`optmigd.enclave_shim.policy`), which judges the claims.
"""

from dataclasses import dataclass
from typing import Protocol

REPORT_DATA_BYTES = 64
MEASUREMENT_BYTES = 32


@dataclass(frozen=True)
class Claims:
    """What verified evidence proves about its sender.

    Attributes:
        platform: which kind of evidence it was.
        measurement: 32 bytes over code, initial data and policy of the enclave.
        signer: 32 bytes naming who signed the image, zeros if nobody did.
        security_version: of the platform.
        debug: whether the host may look into the enclave.
        report_data: the 64 bytes that the sender bound to the evidence.

    """

    platform: str
    measurement: bytes
    signer: bytes
    security_version: int
    debug: bool
    report_data: bytes


class Platform(Protocol):
    """A source of evidence for this enclave, and a verifier of its peers'."""

    name: str
    warning: str
    """What a person must know about the protection this platform gives; empty if all is well."""

    def evidence(self, measurement: bytes, report_data: bytes) -> bytes:
        """Make evidence for this enclave that carries 64 bytes of report data."""

    def verify(self, evidence: bytes) -> Claims:
        """Check evidence and return what it proves.

        Raises:
            AttestationFailed: it is malformed, or not signed by this platform's root.

        """
