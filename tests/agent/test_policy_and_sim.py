"""Evidence of the sim platform, and the owner's policy over its claims."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.enclave_shim.platforms import Claims
from optmigd.enclave_shim.platforms.sim import SimPlatform
from optmigd.enclave_shim.policy import Policy, parse
from optmigd.protocol.errors import AttestationFailed, ConfigError

MEASUREMENT = bytes(range(32))
DATA = bytes(range(64))
SIM = SimPlatform.from_file(None)
CLAIMS = SIM.verify(SIM.evidence(MEASUREMENT, DATA))


def appraise(policy: Policy, claims: Claims) -> None:
    policy.appraise(claims, measurement=MEASUREMENT, platform="sim", report_data=DATA)


def test_evidence_proves_what_it_was_made_of() -> None:
    assert Claims("sim", MEASUREMENT, bytes(32), 1, False, DATA) == CLAIMS


def test_hosts_with_the_development_root_agree_and_others_do_not(tmp_path: Path) -> None:
    evidence = SIM.evidence(MEASUREMENT, DATA)
    assert SimPlatform.from_file(None).verify(evidence) == CLAIMS
    key = tmp_path / "root"
    key.write_text(os.urandom(32).hex() + "\n")
    key.chmod(0o600)
    with pytest.raises(AttestationFailed, match="same root key"):
        SimPlatform.from_file(key).verify(evidence)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_changed_evidence_is_refused(position: int, change: int) -> None:
    evidence = bytearray(SIM.evidence(MEASUREMENT, DATA))
    evidence[position % len(evidence)] ^= change
    with pytest.raises(AttestationFailed):
        SIM.verify(bytes(evidence))


@given(st.binary(max_size=300))
def test_garbage_is_refused(evidence: bytes) -> None:
    with pytest.raises(AttestationFailed):
        SIM.verify(evidence)


@pytest.mark.parametrize(("text", "mode"), [("zz" * 32, 0o600), ("ab", 0o600), ("ab" * 32, 0o644)])
def test_a_bad_root_key_file_is_refused(tmp_path: Path, text: str, mode: int) -> None:
    key = tmp_path / "root"
    key.write_text(text)
    key.chmod(mode)
    with pytest.raises(ConfigError):
        SimPlatform.from_file(key)


def test_the_default_policy_accepts_the_same_enclave() -> None:
    appraise(parse(b""), CLAIMS)


OTHER = b"\x07" * 32


@pytest.mark.parametrize(
    ("text", "claims", "why"),
    [
        ("", replace(CLAIMS, measurement=OTHER), "measurement"),
        ("", replace(CLAIMS, debug=True), "debug"),
        ("", replace(CLAIMS, report_data=bytes(64)), "session"),
        ("", replace(CLAIMS, platform="sgx"), "platform"),
        ('platforms = ["sgx", "snp"]', CLAIMS, "'sim'"),
        ("min_security_version = 2", CLAIMS, "security version is 1"),
        (f'signers = ["{OTHER.hex()}"]', CLAIMS, "signer"),
        (f'measurements = ["{OTHER.hex()}"]', CLAIMS, "measurement"),
    ],
)
def test_what_a_policy_forbids_is_refused_with_the_reason(
    text: str, claims: Claims, why: str
) -> None:
    with pytest.raises(AttestationFailed, match=why):
        appraise(parse(text.encode()), claims)


def test_what_a_policy_allows_is_accepted() -> None:
    policy = parse(
        f'measurements = ["{OTHER.hex().upper()}", "same"]\nplatforms = ["sgx"]\ndebug = true\n'
        f'signers = ["{OTHER.hex().upper()}"]\nmin_security_version = 3'.encode()
    )
    claims = replace(
        CLAIMS,
        measurement=OTHER,
        platform="sgx",
        debug=True,
        signer=OTHER,
        security_version=3,
    )
    appraise(policy, claims)


@pytest.mark.parametrize(
    "text",
    [
        "unknown = 1",
        'measurements = ["abc"]',
        "measurements = []",
        "platforms = []",
        'debug = "yes"',
        "not toml",
        'signers = ["same"]',
    ],
)
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text.encode())


def test_the_digest_is_of_the_meaning() -> None:
    assert parse(b"").digest() == parse(b'platforms = ["same"]   # a comment').digest()
    assert parse(b"").digest() != parse(b"debug = true").digest()
