"""Sealing the four messages of the hand-off, apart from the session's counted channel.

Manifest and READY travel on the first data stream, behind the last pages and back: a way through
both daemons would cost the program a millisecond of its downtime. The release token and the
confirmation may arrive twice, late, or over another connection, and after the channel has failed.
So each is sealed once under a key of its own. The keys of the latter two outlive the session: a
shim that takes up what an earlier one of the same instance has left goes on with them.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from msgspec import Struct
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from optmigd.protocol.errors import DecryptFailed, LocalProtocolError
from optmigd.protocol.link import MAX_PAYLOAD_BYTES
from optmigd.protocol.noise import TAG_BYTES
from optmigd.protocol.session_messages import Manifest, Ready, ReleaseToken, ResumedReport
from optmigd.protocol.wiping import wipe
from optmigd.protocol.wire import MAX_FRAME_BYTES, decode, encode

Role = Literal["source", "destination"]
S = TypeVar("S", bound=Struct)


@dataclass(frozen=True)
class _Kind(Generic[S]):
    """One of the four messages: what errors call it, who seals it, and its most sealed bytes."""

    name: str
    sealer: Role
    type: type[S]
    limit_bytes: int = MAX_PAYLOAD_BYTES

    @property
    def opener(self) -> Role:
        return "destination" if self.sealer == "source" else "source"


_MANIFEST = _Kind("manifest", "source", Manifest, MAX_FRAME_BYTES)
_READY = _Kind("ready", "destination", Ready)
_TOKEN = _Kind("token", "source", ReleaseToken)
_RESUMED = _Kind("resumed", "destination", ResumedReport)


class HandoffSeals:
    """One side's keys of the hand-off.

    A key seals one message and nothing else, so a fixed nonce is never used twice. Who restores
    keys must know that nothing which was sealed with them has ever been let out: what was let out
    is kept and sent again, never sealed again.

    Args:
        side: the source seals manifest and token and opens READY and the confirmation, the
            destination the reverse.
        migration_id: 16 bytes, bound to all.
        token_key, resumed_key, manifest_key, ready_key: 32 bytes each; empty for one that is not
            needed.
    """

    def __init__(
        self,
        side: Role,
        migration_id: bytes,
        *,
        token_key: bytes,
        resumed_key: bytes,
        manifest_key: bytes = b"",
        ready_key: bytes = b"",
    ) -> None:
        self.token_key = token_key
        self.resumed_key = resumed_key
        self._manifest_key = manifest_key
        self._ready_key = ready_key
        self._side: Role = side
        self._migration_id = migration_id
        self._sealed: set[str] = set()

    def seal_manifest(self, manifest: Manifest) -> bytes:
        """Seal what the destination must have, once.

        Raises:
            LocalProtocolError: not the source, one was made before, or it is too large.
        """
        return self._seal_once(_MANIFEST, self._manifest_key, manifest)

    def open_manifest(self, payload: bytes) -> Manifest:
        """Open a manifest. Whether it fits is for the caller to say.

        Raises:
            LocalProtocolError: not the destination.
            DecryptFailed: it was not sealed in this session.
            RemoteProtocolError: it is no manifest.
        """
        return self._open(_MANIFEST, self._manifest_key, payload)

    def seal_ready(self, ready: Ready) -> bytes:
        """Seal this side's digest, once.

        Raises:
            LocalProtocolError: not the destination, or one was made before.
        """
        return self._seal_once(_READY, self._ready_key, ready)

    def open_ready(self, payload: bytes) -> Ready:
        """Open a READY. Whether its digest is right is for the caller to say.

        Raises:
            LocalProtocolError: not the source.
            DecryptFailed: it was not sealed in this session.
            RemoteProtocolError: it is no READY.
        """
        return self._open(_READY, self._ready_key, payload)

    def seal_token(self, token: ReleaseToken) -> bytes:
        """Seal the right to execute, once.

        Raises:
            LocalProtocolError: not the source, or a token was made before.
        """
        return self._seal_once(_TOKEN, self.token_key, token)

    def open_token(self, payload: bytes) -> ReleaseToken:
        """Open a token. Whether it fits is for `check_token` to say.

        Raises:
            LocalProtocolError: not the destination.
            DecryptFailed: it was not sealed in this session.
            RemoteProtocolError: it is no token.
        """
        return self._open(_TOKEN, self.token_key, payload)

    def seal_resumed(self, report: ResumedReport) -> bytes:
        """Seal the confirmation, once.

        Raises:
            LocalProtocolError: not the destination, or one was made before.
        """
        return self._seal_once(_RESUMED, self.resumed_key, report)

    def open_resumed(self, payload: bytes) -> ResumedReport:
        """Open a confirmation.

        Raises:
            LocalProtocolError: not the source.
            DecryptFailed: it was not sealed in this session.
            RemoteProtocolError: it is no confirmation.
        """
        return self._open(_RESUMED, self.resumed_key, payload)

    def forget(self) -> None:
        """Overwrite the keys: nothing more is to be sealed or opened."""
        for key in (self.token_key, self.resumed_key, self._manifest_key, self._ready_key):
            wipe(key)

    def _seal_once(self, kind: _Kind[S], key: bytes, message: S) -> bytes:
        if self._side != kind.sealer or kind.name in self._sealed:
            raise LocalProtocolError(f"a {kind.name} is sealed by the {kind.sealer}, once")
        self._sealed.add(kind.name)
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(
            encode(message), self._migration_id, bytes(12), key
        )
        if len(sealed) > kind.limit_bytes:
            raise LocalProtocolError(f"a {kind.name} of {len(sealed)} bytes")
        return sealed

    def _open(self, kind: _Kind[S], key: bytes, payload: bytes) -> S:
        if self._side != kind.opener:
            raise LocalProtocolError(f"a {kind.name} is opened by the {kind.opener}")
        if not TAG_BYTES <= len(payload) <= kind.limit_bytes:
            raise DecryptFailed(f"a {kind.name} of an impossible length")
        try:
            encoded = crypto_aead_chacha20poly1305_ietf_decrypt(
                payload, self._migration_id, bytes(12), key
            )
        except CryptoError as error:
            raise DecryptFailed(f"a {kind.name} not sealed in this session") from error
        return decode(encoded, kind.type)
