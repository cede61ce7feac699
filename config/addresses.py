"""Names, addresses and keys as people write them in files and on command lines.

Both the configuration and `optmigctl host add` read them; one place decides what is accepted and
how a refusal reads.
"""

import base64
import binascii
import hashlib
import re

from optmigd.protocol.errors import ConfigError

KEY_BYTES = 32
"""Size of an X25519 key. Source: RFC 7748, section 5."""

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Names of hosts: they become file names, log fields and command-line arguments."""


def check_name(name: str) -> str:
    """Return `name` if it can name a host.

    Raises:
        ConfigError: it is empty, too long or has other characters.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"a host name has 1 to 63 letters, digits, '.', '_' or '-' and starts with a letter "
            f"or digit; found {name!r}",
            name=name,
        )
    return name


def parse_address(text: str, *, allow_port_zero: bool = False) -> tuple[str, int]:
    """Split ``ADDR:PORT`` (``[ADDR]:PORT`` for IPv6) into host and port.

    Args:
        text: as people write it.
        allow_port_zero: accept port 0, which means "any free port" to a listener.

    Raises:
        ConfigError: it has another form, or the port is out of range.
    """
    match = re.fullmatch(
        r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s:\[\]]+)):(?P<port>\d{1,5})", text
    )
    lowest = 0 if allow_port_zero else 1
    if match is None or not lowest <= int(match["port"]) <= 65535:
        raise ConfigError(
            f"expected ADDR:PORT, such as 192.0.2.7:7411 or [2001:db8::7]:7411, with a port from "
            f"{lowest} to 65535; found {text!r}",
            address=text,
        )
    return match["v6"] or match["host"], int(match["port"])


def format_address(host: str, port: int) -> str:
    """Write host and port so that `parse_address` reads them back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_key(text: str) -> bytes:
    """Read a host key from its 44 characters of base64.

    Returns:
        32 bytes.

    Raises:
        ConfigError: it is not base64, or not of 32 bytes. The text itself is not repeated in the
            message, because a private key pasted by mistake would reach logs.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"a host key is {KEY_BYTES} bytes in base64, 44 characters; found {len(text)} "
            f"characters that are not one. `optmigctl host identity` on that host prints its key"
        )
    return key


def format_key(key: bytes) -> str:
    """Write a key as base64: 44 characters."""
    return base64.b64encode(key).decode("ascii")


def fingerprint(public_key: bytes) -> str:
    """Return ``SHA256:`` and the base64 of the SHA-256 of a public key: for people to compare."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode("ascii")
