"""docs/protocol.md says what the code does: generated parts are up to date, figures are right."""

import re

import pytest

from optmigd.protocol import ciphers, link, noise, record_format, session, versions, wire
from tests.protocol.document import DOCUMENT, PARTS, parts_of, refreshed

TEXT = DOCUMENT.read_text("utf-8")


def test_every_generated_part_is_there_once() -> None:
    assert sorted(parts_of(TEXT)) == sorted(PARTS)


def test_the_generated_parts_are_up_to_date() -> None:
    assert refreshed(TEXT) == TEXT, "run `python -m tests.protocol.document`"


@pytest.mark.parametrize(
    "constant",
    [
        noise.XX.name,
        link.LINK_PREAMBLE.decode(),
        link.DATA_PREAMBLE.decode(),
        session._PROLOGUE_LABEL.decode(),
        session._REPORT_LABEL.decode(),
        ciphers._LABEL.decode(),
        ciphers._DIRECTION.decode(),
        ciphers.AEGIS_256,
        ciphers.AES_256_GCM,
        ciphers.CHACHA20_POLY1305,
        "optmigd export v1",
        "optmigd stream chain v1",
        "optmigd overall chain v1",
        "optmigd state digest v1",
    ],
)
def test_every_label_is_named(constant: str) -> None:
    assert f"`{constant}`" in TEXT or f'"{constant}"' in TEXT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("largest control frame", wire.MAX_FRAME_BYTES),
        ("largest string", wire.MAX_STRING_BYTES),
        ("deepest nesting", wire.MAX_DEPTH),
        ("most items", wire.MAX_ITEMS),
        ("largest Noise message", noise.MAX_MESSAGE_BYTES),
        ("largest session payload", link.MAX_PAYLOAD_BYTES),
        ("largest session message", session.MAX_MESSAGE_BYTES),
        ("largest record meta", record_format.MAX_META_BYTES),
        ("largest record body", record_format.MAX_RECORD_BYTES),
        ("default record body", record_format.DEFAULT_RECORD_BYTES),
    ],
)
def test_every_bound_is_named(name: str, value: int) -> None:
    assert re.search(rf"\| {name} \| {value:,} \|", TEXT)


@pytest.mark.parametrize("cipher", ciphers.supported_ciphers(aes_in_hardware=True))
def test_every_tag_length_is_named(cipher: str) -> None:
    assert re.search(rf"\| `{cipher}` \| {ciphers.tag_bytes(cipher)} \|", TEXT)


def test_the_versions_are_named() -> None:
    assert f"link {versions.LINK_VERSIONS}, session {versions.SESSION_VERSIONS}" in TEXT
