"""Fuzz targets: what people write, in files and on command lines."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from optmigd.config import PeerBook, load_settings
from optmigd.config.addresses import check_name, format_address, parse_address, parse_key
from optmigd.enclave_shim.policy import parse as parse_policy
from optmigd.protocol.errors import ConfigError
from optmigd.units import format_rate, format_size, parse_rate, parse_size
from tests.fuzz.targets import target

DEFAULTS = Path(__file__).parents[2] / "config" / "default.toml"
KEY = "A" * 43 + "="


def _file(data: bytes) -> Path:
    """A file of this process with that content; the same one each time."""
    path = Path(tempfile.gettempdir()) / f"optmigd-fuzz-{os.getpid()}.toml"
    path.write_bytes(data)
    return path


@target(lambda: [DEFAULTS.read_bytes(), b'[host]\nlisten = "[::1]:7411"\n'])
def settings_file(data: bytes) -> None:
    """A configuration file."""
    path = _file(data)
    try:
        load_settings(path)
    finally:
        path.unlink()


@target(lambda: [f'[[peers]]\nname = "b"\naddress = "192.0.2.7:1"\nkey = "{KEY}"\n'.encode()])
def peers_file(data: bytes) -> None:
    """The list of peers that `host add` keeps: what was read can be kept and read again."""
    path = _file(data)
    try:
        peers = PeerBook.load(path).peers
        book = PeerBook.load(path)
        book._keep(list(peers))
        assert PeerBook.load(path).peers == peers
    finally:
        path.unlink()


@target(lambda: [b'measurements = ["same"]\nplatforms = ["sgx"]\nmin_security_version = 2\n'])
def policy_file(data: bytes) -> None:
    """An owner's policy."""
    policy = parse_policy(data)
    assert len(policy.digest()) == 32
    for text in policy.measurements:
        assert text == "same" or len(bytes.fromhex(text)) == 32


@target(
    lambda: [b"192.0.2.7:7411", b"[2001:db8::7]:7411", KEY.encode(), b"alpha"], UnicodeDecodeError
)
def address_text(data: bytes) -> None:
    """Names, addresses, keys."""
    text = data.decode()
    with suppress(ConfigError):
        check_name(text)
    with suppress(ConfigError):
        assert len(parse_key(text)) == 32
    host, port = parse_address(text)
    assert parse_address(format_address(host, port)) == (host, port)


@target(lambda: [b"4GiB", b"1.5 GB", b"200MB/s", b"10Gbit/s", b"1_000"], ValueError)
def unit_text(data: bytes) -> None:
    """Sizes and rates."""
    text = data.decode()
    try:
        size = parse_size(text)
    except ValueError:
        size = parse_rate(text)
    assert size >= 0
    assert parse_size(format_size(size)) >= 0
    assert parse_rate(format_rate(size)) >= 0
