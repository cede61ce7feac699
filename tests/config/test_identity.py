"""The host's key, and a configuration made on first use."""

import stat
from pathlib import Path

import pytest

from optmigd.config import HostIdentity, create_config, load_settings
from optmigd.protocol.errors import ConfigError

# Source: Bob's keys of RFC 7748, section 6.1; the fingerprint by sha256sum and base64.
PRIVATE = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
KEY_TEXT = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
FINGERPRINT = "SHA256:815WFhYKML88bnn6c8V21AIF6Pw7pOHG3Pk+a5joV7Q="


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_known_key_has_its_known_public_half_and_fingerprint() -> None:
    identity = HostIdentity.from_private(PRIVATE)
    assert identity.public == PUBLIC
    assert identity.key_text == KEY_TEXT
    assert identity.fingerprint == FINGERPRINT


def test_the_private_key_is_not_in_the_repr() -> None:
    text = repr(HostIdentity.from_private(PRIVATE))
    assert repr(PRIVATE) not in text
    assert PRIVATE.hex() not in text
    assert repr(PUBLIC) in text


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_private_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        HostIdentity.from_private(bytes(size))


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "new" / "host.key"
    first = HostIdentity.load_or_create(file)
    assert HostIdentity.load_or_create(file) == first
    assert HostIdentity.load(file) == first
    assert mode(file) == 0o600
    assert mode(file.parent) == 0o700
    assert HostIdentity.load_or_create(tmp_path / "other.key") != first
    assert [path.name for path in file.parent.iterdir()] == ["host.key"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, bits: int) -> None:
    file = tmp_path / "host.key"
    HostIdentity.load_or_create(file)
    file.chmod(bits)
    with pytest.raises(ConfigError, match=f"found mode 0{bits:o}"):
        HostIdentity.load_or_create(file)


@pytest.mark.parametrize("content", ["", "short\n", KEY_TEXT[:-4] + "\n", "é" * 44, "=" * 44])
def test_a_damaged_key_is_refused_without_being_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "host.key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError) as refused:
        HostIdentity.load(file)
    assert str(file) in refused.value.message
    if content.strip():
        assert content.strip() not in refused.value.message
    assert file.read_text() == content


def test_a_configuration_is_made_private_and_holds_what_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "optmigd.toml"
    made = create_config(
        file,
        {
            "host.name": "a",
            "host.listen": "127.0.0.1:0",
            "paths.state_dir": tmp_path / 'st\u00e4te "x"',
            "paths.socket": None,
            "enclave_user": "nobody",
        },
    )
    assert mode(file) == 0o600
    assert mode(file.parent) == 0o700
    assert made == load_settings(file)
    assert made.host.name == "a"
    assert made.host.listen == "127.0.0.1:0"
    assert made.paths.state_dir == tmp_path / 'st\u00e4te "x"'
    assert made.enclave_user == "nobody"
    assert made.paths.host_key == file.parent / "host.key"
    assert mode(made.paths.host_key) == 0o600
    HostIdentity.load(made.paths.host_key)


def test_a_name_that_came_from_the_machine_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box (old).example")
    file = tmp_path / "optmigd.toml"
    assert create_config(file).host.name == "box--old-.example"
    monkeypatch.setattr("socket.gethostname", lambda: "renamed")
    assert load_settings(file).host.name == "box--old-.example"


def test_an_existing_configuration_or_key_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "optmigd.toml"
    file.write_text("# mine\n")
    with pytest.raises(ConfigError, match="left as it is"):
        create_config(file)
    assert file.read_text() == "# mine\n"
    key = HostIdentity.load_or_create(tmp_path / "host.key")
    file.unlink()
    create_config(file)
    assert HostIdentity.load(tmp_path / "host.key") == key


def test_a_wrong_value_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ADDR:PORT"):
        create_config(tmp_path / "new" / "optmigd.toml", {"host.listen": "x"})
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        create_config(tmp_path / "file" / "optmigd.toml")
