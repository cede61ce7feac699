"""The key by which peers recognise this host.

One X25519 key pair, as in WireGuard: the private half stays in a file of its own, the public half
is what the operators of other hosts pin with `optmigctl host add`.
"""

import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from nacl.bindings import crypto_scalarmult_base

from optmigd.config.addresses import KEY_BYTES, fingerprint, format_key, parse_key
from optmigd.config.files import make_private_directory, write_private
from optmigd.protocol.errors import ConfigError


@dataclass(frozen=True)
class HostIdentity:
    """A host's static key pair; `private` never appears in its `repr`."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def from_private(cls, private: bytes) -> "HostIdentity":
        """Derive the pair from a private key of 32 bytes.

        Raises:
            ConfigError: it has another length.
        """
        if len(private) != KEY_BYTES:
            raise ConfigError(f"a host key has {KEY_BYTES} bytes; found {len(private)}")
        return cls(private=private, public=crypto_scalarmult_base(private))

    @classmethod
    def load(cls, path: Path) -> "HostIdentity":
        """Read the private key from `path`.

        Raises:
            ConfigError: the file is absent, is not a key, or others than its owner may read or
                write it.
        """
        try:
            mode = path.stat().st_mode
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: the host key cannot be read ({error}); `optmigd serve` makes one where "
                f"there is none",
                file=str(path),
            ) from error
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(
                f"{path}: the host key must be readable by its owner alone (mode 0600); found mode "
                f"{stat.S_IMODE(mode):04o}. Others may have read it: make a new one, or "
                f"`chmod 600 {path}` if you know that they have not",
                file=str(path),
            )
        try:
            return cls.from_private(parse_key(text.strip()))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", file=str(path)) from error

    @classmethod
    def load_or_create(cls, path: Path) -> "HostIdentity":
        """Read the private key from `path`; where there is none, make one (mode 0600).

        Raises:
            ConfigError: as `load`, or the file cannot be written.
        """
        if not path.exists():
            content = format_key(secrets.token_bytes(KEY_BYTES)).encode() + b"\n"
            try:
                make_private_directory(path.parent)
                write_private(path, content, replace=False)
            except FileExistsError:
                pass  # another process made it in between: that one counts
            except OSError as error:
                raise ConfigError(
                    f"{path}: the host key cannot be written ({error}); give a configuration in a "
                    f"directory that this user may write with --config",
                    file=str(path),
                ) from error
        return cls.load(path)

    @property
    def key_text(self) -> str:
        """The public key as peers write it down: 44 characters of base64."""
        return format_key(self.public)

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and the base64 of the SHA-256 of the public key."""
        return fingerprint(self.public)
