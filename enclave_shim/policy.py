"""The owner's appraisal policy: to which enclaves, where, may this enclave's state go?

It is TOML, part of what is measured, and the same on both sides: each side judges the other by it
before anything secret is sent. Both directions matter, since a destination that accepts state from
anybody would run whatever it is given. An empty policy is the default one::

    measurements = ["same"]      # "same", or 64 hex digits each
    platforms = ["same"]         # "same": the platform this enclave runs on; or names
    signers = []                 # hex; empty: any
    debug = false                # whether a debug enclave will do
    min_security_version = 0

A production policy names its platforms, without `sim`.
"""

import hashlib
import hmac
import tomllib

import msgspec

from optmigd.enclave_shim.platforms import Claims
from optmigd.protocol.errors import AttestationFailed, ConfigError

MAX_POLICY_BYTES = 64 << 10
DIGEST_LABEL = b"optmigd policy v1"


class Policy(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A parsed policy."""

    measurements: list[str] = msgspec.field(default_factory=lambda: ["same"])
    platforms: list[str] = msgspec.field(default_factory=lambda: ["same"])
    signers: list[str] = msgspec.field(default_factory=list)
    debug: bool = False
    min_security_version: int = 0

    def digest(self) -> bytes:
        """32 bytes that stand for the policy's meaning (not its spelling)."""
        canonical = msgspec.json.encode(
            {
                "measurements": sorted(text.lower() for text in self.measurements),
                "platforms": sorted(self.platforms),
                "signers": sorted(text.lower() for text in self.signers),
                "debug": self.debug,
                "min_security_version": self.min_security_version,
            }
        )
        return hashlib.sha256(DIGEST_LABEL + canonical).digest()

    def accepts_platform(self, platform: str, own_platform: str) -> bool:
        """Whether evidence of that platform will do."""
        return platform in self.platforms or ("same" in self.platforms and platform == own_platform)

    def appraise(
        self, claims: Claims, *, measurement: bytes, platform: str, report_data: bytes
    ) -> None:
        """Judge a peer's verified claims.

        Args:
            claims: what its evidence proves.
            measurement: this enclave's own.
            platform: this enclave's own.
            report_data: what the evidence must be bound to.

        Raises:
            AttestationFailed: with the first rule that is not met, what was expected and found.

        """
        if not hmac.compare_digest(claims.report_data, report_data):
            raise AttestationFailed("the peer's evidence is not bound to this session")
        if not self.accepts_platform(claims.platform, platform):
            raise AttestationFailed(
                f"the policy does not accept platform {claims.platform!r} "
                f"(accepted: {', '.join(self.platforms)})"
            )
        if claims.debug and not self.debug:
            raise AttestationFailed("the policy does not accept a debug enclave")
        accepted = [measurement if m == "same" else bytes.fromhex(m) for m in self.measurements]
        if claims.measurement not in accepted:
            raise AttestationFailed(
                f"measurement mismatch: the peer runs {claims.measurement.hex()[:16]}…, the policy "
                f"accepts {', '.join(m.hex()[:16] + '…' for m in accepted) or 'none'}"
            )
        if self.signers and claims.signer.hex() not in [s.lower() for s in self.signers]:
            raise AttestationFailed("the policy does not accept the signer of the peer's image")
        if claims.security_version < self.min_security_version:
            raise AttestationFailed(
                f"the peer's security version is {claims.security_version}, the policy asks for "
                f"at least {self.min_security_version}"
            )


def parse(content: bytes) -> Policy:
    """Read a policy; empty content gives the default.

    Raises:
        ConfigError: it is not a policy; the message names the field.

    """
    if len(content) > MAX_POLICY_BYTES:
        raise ConfigError(f"the policy has {len(content)} bytes, at most {MAX_POLICY_BYTES} fit")
    try:
        policy = msgspec.convert(tomllib.loads(content.decode()), Policy)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the policy is not valid: {error}") from error
    for field, texts in (("measurements", policy.measurements), ("signers", policy.signers)):
        for text in texts:
            if field == "measurements" and text == "same":
                continue
            if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
                raise ConfigError(f"the policy's {field} must be 64 hex digits each, not {text!r}")
    if not policy.measurements or not policy.platforms:
        raise ConfigError("the policy names no measurement or no platform: nothing could ever move")
    return policy
