"""The hosts that this one talks to, each pinned by its key.

Peers come from two places: those in the configuration file, which only its author changes, and
those of `optmigctl host add`, kept in `peers.toml` in the state directory. A name or a key stands
for one peer alone, so a connection is never attributed to the wrong one.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from optmigd.config.addresses import (
    check_name,
    fingerprint,
    format_address,
    format_key,
    parse_address,
    parse_key,
)
from optmigd.config.files import make_private_directory, write_private
from optmigd.config.settings import PeerSettings
from optmigd.protocol.errors import ConfigError, UnknownHost


@dataclass(frozen=True)
class Peer:
    """A host that may offer enclaves to this one, and to which this one may offer its own."""

    name: str
    host: str
    port: int
    key: bytes

    @classmethod
    def parse(cls, name: str, address: str, key: str) -> "Peer":
        """Make a peer of a name, ``ADDR:PORT`` and a key in base64.

        Raises:
            ConfigError: one of them has another form.
        """
        host, port = parse_address(address)
        return cls(name=check_name(name), host=host, port=port, key=parse_key(key))

    @property
    def address(self) -> str:
        """``ADDR:PORT``."""
        return format_address(self.host, self.port)

    @property
    def key_text(self) -> str:
        """The key as 44 characters of base64."""
        return format_key(self.key)

    @property
    def fingerprint(self) -> str:
        """``SHA256:…`` of the key."""
        return fingerprint(self.key)


class _PeersFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peers: tuple[PeerSettings, ...] = ()


class PeerBook:
    """All peers by name and by key; changes are on disk before they take effect."""

    def __init__(self, path: Path, configured: Sequence[Peer], added: Sequence[Peer]) -> None:
        """Use `load`; this takes what that has read."""
        self._path = path
        self._configured = tuple(configured)
        self._added = tuple(added)

    @classmethod
    def load(cls, path: Path, configured: Sequence[PeerSettings] = ()) -> "PeerBook":
        """Read the peers kept in `path` (which need not exist) beside those of the configuration.

        Raises:
            ConfigError: the file cannot be read or is wrong, or one name or key stands for
                different peers.
        """
        fixed: list[Peer] = []
        for entry in configured:
            peer = Peer.parse(entry.name, entry.address, entry.key)
            _refuse_conflict(peer, fixed, "the configuration")
            fixed.append(peer)
        added: list[Peer] = []
        for entry in _read(path):
            try:
                peer = Peer.parse(entry.name, entry.address, entry.key)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error.message}", file=str(path)) from error
            if peer in fixed:
                continue
            _refuse_conflict(peer, [*fixed, *added], str(path))
            added.append(peer)
        return cls(path, fixed, added)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers, sorted by name."""
        return tuple(sorted((*self._configured, *self._added), key=lambda peer: peer.name))

    def by_name(self, name: str) -> Peer:
        """Return the peer of that name.

        Raises:
            UnknownHost: there is none; the message lists those there are.
        """
        for peer in self.peers:
            if peer.name == name:
                return peer
        known = ", ".join(peer.name for peer in self.peers) or "none"
        raise UnknownHost(
            f"no peer is called {name!r}; known peers: {known}. Add it with `optmigctl host add "
            f"{name} ADDR:PORT KEY`, where ADDR:PORT and KEY are what `optmigctl host identity` "
            f"prints on that host",
            host=name,
        )

    def by_key(self, key: bytes) -> Peer | None:
        """Return the peer with that public key, None if there is none."""
        return next((peer for peer in self.peers if peer.key == key), None)

    def add(self, name: str, address: str, key: str) -> Peer:
        """Add a peer, or replace the one of that name, and keep it.

        Args:
            name: how commands call it.
            address: ``ADDR:PORT``.
            key: its public key in base64.

        Raises:
            ConfigError: a text has another form, the configuration file pins that name, another
                peer has that key, or the file cannot be written; nothing has changed.
        """
        peer = Peer.parse(name, address, key)
        others = [kept for kept in self._added if kept.name != name]
        _refuse_conflict(peer, [*self._configured, *others], "host add")
        self._keep([*others, peer])
        return peer

    def remove(self, name: str) -> Peer:
        """Forget a peer, and keep it so; returns what it was.

        Raises:
            UnknownHost: there is none of that name.
            ConfigError: it stands in the configuration file, or the file cannot be written;
                nothing has changed.
        """
        peer = self.by_name(name)
        if peer in self._configured:
            raise ConfigError(
                f"peer {name!r} stands in the configuration file of the daemon; remove it there "
                f"and restart the daemon",
                host=name,
            )
        self._keep([kept for kept in self._added if kept.name != name])
        return peer

    def _keep(self, added: Sequence[Peer]) -> None:
        lines = ["# Kept by `optmigctl host add` and `host remove`."]
        for peer in sorted(added, key=lambda peer: peer.name):
            lines += [
                "",
                "[[peers]]",
                f'name = "{peer.name}"',
                f'address = "{peer.address}"',
                f'key = "{peer.key_text}"',
            ]
        try:
            make_private_directory(self._path.parent)
            write_private(self._path, ("\n".join(lines) + "\n").encode(), replace=True)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: the peers cannot be kept: {error}", file=str(self._path)
            ) from error
        self._added = tuple(added)


def _read(path: Path) -> tuple[PeerSettings, ...]:
    try:
        tree: Any = tomllib.loads(path.read_text("utf-8"))
        return msgspec.convert(tree, _PeersFile).peers
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{path}: the list of peers cannot be read: {error}. Repair it, or remove it and add "
            f"the peers again with `optmigctl host add`",
            file=str(path),
        ) from error


def _refuse_conflict(peer: Peer, others: Sequence[Peer], where: str) -> None:
    for other in others:
        if other.name == peer.name:
            raise ConfigError(
                f"{where}: peer {peer.name!r} is pinned already, at {other.address} with key "
                f"{other.fingerprint}; a name stands for one peer. Change that entry instead",
                host=peer.name,
            )
        if other.key == peer.key:
            raise ConfigError(
                f"{where}: peer {other.name!r} has the key given for {peer.name!r} "
                f"({peer.fingerprint}); a key stands for one peer. Remove {other.name!r} first, or "
                f"check the key with `optmigctl host identity` on {peer.name!r}",
                host=peer.name,
            )
