"""The Noise handshake that both layers use: Noise_XX_25519_ChaChaPoly_BLAKE2b.

Noise is a small language for handshakes. Each message is a list of tokens: `e` and `s` send an
ephemeral or a static key, and `ee`, `es`, `se`, `ss` mix a Diffie-Hellman result of two keys into
the chaining key. Everything sent is also mixed into a running hash `h`, which seals the payloads as
associated data: if one byte of the conversation differs between the two sides, the next payload
does not open. XX exchanges and authenticates both static keys in three messages.

Source: "The Noise Protocol Framework", revision 34, sections 4 to 9; section numbers are given
below. The primitives are libsodium's (through PyNaCl) and the standard library's. Other patterns
and hashes exist here only so that the published test vectors can be run against the same code.

Rules kept here: a failed handshake stays failed; transport ciphers are made by consuming the
finished handshake; a nonce advances only when a message was sealed or opened; a failure says
nothing about its cause that the peer could not know; what a key was derived from is overwritten.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

from optmigd.protocol.errors import (
    ChannelClosed,
    DecryptFailed,
    HandshakeFailed,
    LocalProtocolError,
)
from optmigd.protocol.wiping import own_copy, wipe

KEY_BYTES = 32
TAG_BYTES = 16
MAX_MESSAGE_BYTES = 65535
MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TAG_BYTES
MAX_NONCE = 2**64 - 1  # reserved, section 5.1

PayloadMaker = Callable[[bytes], bytes]


@dataclass(frozen=True)
class KeyPair:
    """An X25519 key pair; the private half stays out of `repr`."""

    private: bytes = field(repr=False)
    public: bytes


def keypair(private: bytes) -> KeyPair:
    """Return the pair of a private key of 32 bytes.

    Raises:
        LocalProtocolError: it has another length.
    """
    if len(private) != KEY_BYTES:
        raise LocalProtocolError(f"an X25519 key has {KEY_BYTES} bytes; found {len(private)}")
    return KeyPair(own_copy(private), crypto_scalarmult_base(bytes(private)))


def shared_secret(private: bytes, public: bytes) -> bytes:
    """Return X25519 of the two keys.

    Raises:
        HandshakeFailed: a key has not 32 bytes, or the result is all zero (a point of small order).
    """
    # PyNaCl does not check the lengths, and libsodium reads 32 bytes whatever it is given.
    if len(private) != KEY_BYTES or len(public) != KEY_BYTES:
        raise HandshakeFailed("an X25519 key of the peer has not 32 bytes")
    try:
        secret = crypto_scalarmult(private, public)
    except (RuntimeError, CryptoError) as error:
        raise HandshakeFailed("the peer's key is a point of small order") from error
    if not any(secret):
        raise HandshakeFailed("the peer's key is a point of small order")
    return secret


class CipherState:
    """One direction of a channel: a key and a counter (section 5.1)."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a cipher key has {KEY_BYTES} bytes; found {len(key)}")
        self._key = key
        self._nonce = 0

    @property
    def nonce(self) -> int:
        """How many messages were sealed or opened."""
        return self._nonce

    def encrypt(self, plaintext: bytes, ad: bytes = b"") -> bytes:
        """Return `plaintext` sealed, 16 bytes longer.

        Raises:
            LocalProtocolError: it is too long for one message, or the counter is used up.
        """
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise LocalProtocolError(
                f"{len(plaintext)} bytes for one Noise message; at most {MAX_PLAINTEXT_BYTES} fit"
            )
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, ad, self._nonce_bytes(), self._key
        )
        self._nonce += 1
        return sealed

    def decrypt(self, sealed: bytes, ad: bytes = b"") -> bytes:
        """Return the plaintext; the counter stays where it was unless this succeeds.

        Raises:
            DecryptFailed: it is not what the peer sealed as its next message.
            LocalProtocolError: the counter is used up.
        """
        if not TAG_BYTES <= len(sealed) <= MAX_MESSAGE_BYTES:
            raise DecryptFailed("a sealed message of an impossible length", bytes=len(sealed))
        try:
            plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(
                sealed, ad, self._nonce_bytes(), self._key
            )
        except CryptoError as error:
            raise DecryptFailed(
                "a sealed message was changed, repeated, dropped or reordered", nonce=self._nonce
            ) from error
        self._nonce += 1
        return plaintext

    def forget(self) -> None:
        """Overwrite the key; nothing more is to be sealed or opened."""
        wipe(self._key)

    def _nonce_bytes(self) -> bytes:
        if self._nonce >= MAX_NONCE:
            raise LocalProtocolError("the channel has used up its counter")
        return bytes(4) + self._nonce.to_bytes(8, "little")  # section 12.3


@dataclass(frozen=True)
class Suite:
    """A Noise protocol: its full name, the messages' tokens, keys known before, and the hash."""

    name: str
    messages: tuple[str, ...]
    initiator_known: bool = False
    responder_known: bool = False
    hash_name: str = "blake2b"

    @property
    def uses_psk(self) -> bool:
        """Whether a pre-shared key is mixed in; `e` then goes into the key too (section 9.2)."""
        return any("psk" in tokens.split() for tokens in self.messages)


XX = Suite("Noise_XX_25519_ChaChaPoly_BLAKE2b", ("e", "e ee s es", "s se"))


class _Symmetric:
    """The running hash, the chaining key and the handshake cipher (section 5.2)."""

    def __init__(self, suite: Suite) -> None:
        self._hash_name = suite.hash_name
        digest_bytes = hashlib.new(suite.hash_name).digest_size
        name = suite.name.encode("ascii")
        self.h = name.ljust(digest_bytes, b"\0") if len(name) <= digest_bytes else self._hash(name)
        self.chaining_key = own_copy(self.h)
        self._cipher: CipherState | None = None

    @property
    def keyed(self) -> bool:
        return self._cipher is not None

    def _hash(self, content: bytes) -> bytes:
        return hashlib.new(self._hash_name, content).digest()

    def _hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        temp = hmac.digest(self.chaining_key, material, self._hash_name)
        result: list[bytes] = []
        last = b""
        for index in range(outputs):
            block = last + bytes([index + 1])
            last = hmac.digest(temp, block, self._hash_name)
            wipe(block)
            result.append(last)
        wipe(temp)
        wipe(self.chaining_key)
        return result

    def mix_hash(self, content: bytes) -> None:
        self.h = self._hash(self.h + content)

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, key = self._hkdf(material, 2)
        self._take_key(key)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, extra, key = self._hkdf(material, 3)
        self.mix_hash(extra)
        self._take_key(key)

    def _take_key(self, key: bytes) -> None:
        if self._cipher is not None:
            self._cipher.forget()
        self._cipher = CipherState(_cut(key))

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.h)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = sealed if self._cipher is None else self._cipher.decrypt(sealed, self.h)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes, bytes]:
        """Return both transport keys and, as a third output, a secret to export keys from."""
        first, second, exported = self._hkdf(b"", 3)
        if self._cipher is not None:
            self._cipher.forget()
        return _cut(first), _cut(second), _cut(exported)


def _cut(output: bytes) -> bytes:
    """The key at the beginning of a hash's output, which is used up."""
    if len(output) == KEY_BYTES:
        return output
    key = output[:KEY_BYTES]
    wipe(output)
    return key


class Transport:
    """The channel after the handshake: one cipher for each direction."""

    def __init__(
        self, send: CipherState, recv: CipherState, handshake_hash: bytes, exporter_secret: bytes
    ) -> None:
        self.send = send
        self.recv = recv
        self.handshake_hash = handshake_hash
        self._exporter_secret = exporter_secret

    def encrypt(self, plaintext: bytes, ad: bytes = b"") -> bytes:
        """Seal the next message; see `CipherState.encrypt`."""
        return self.send.encrypt(plaintext, ad)

    def decrypt(self, sealed: bytes, ad: bytes = b"") -> bytes:
        """Open the next message; see `CipherState.decrypt`."""
        return self.recv.decrypt(sealed, ad)

    def export(self, label: bytes) -> bytes:
        """Return 32 secret bytes that both sides derive for `label`, apart from all other keys."""
        return hmac.digest(self._exporter_secret, b"optmigd export v1\0" + label, "sha256")

    def forget_exporter(self) -> None:
        """Overwrite what further keys are exported from; there will be no more."""
        wipe(self._exporter_secret)

    def forget(self) -> None:
        """Overwrite everything; the channel is of no further use."""
        self.send.forget()
        self.recv.forget()
        self.forget_exporter()


class Handshake:
    """One side of a handshake: `write` and `read` in turn, then `finish`.

    Args:
        initiator: whether this side writes the first message.
        static: this side's static key pair; patterns without one take None.
        ephemeral_private: 32 fresh random bytes, never used before.
        prologue: what both sides must agree on beforehand; it is not sent.
        suite: XX unless published vectors are run.
        remote_static: the peer's key where the pattern knows it beforehand.
        psks: pre-shared keys where the pattern has them.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: KeyPair | None,
        ephemeral_private: bytes,
        prologue: bytes,
        suite: Suite = XX,
        remote_static: bytes | None = None,
        psks: Sequence[bytes] = (),
    ) -> None:
        self._initiator = initiator
        self._static = static
        self._ephemeral = keypair(ephemeral_private)
        self._remote_static = remote_static
        self._remote_ephemeral: bytes | None = None
        self._psks = list(psks)
        self._uses_psk = suite.uses_psk
        self._messages = [tokens.split() for tokens in suite.messages]
        self._turn = 0
        self._state: _Symmetric | None = _Symmetric(suite)
        self._hash_before_payload = b""
        self._state.mix_hash(prologue)
        if suite.initiator_known:
            self._state.mix_hash(self._known_static(initiator))
        if suite.responder_known:
            self._state.mix_hash(self._known_static(not initiator))

    @property
    def complete(self) -> bool:
        """Whether every message has been written or read."""
        return self._turn == len(self._messages)

    @property
    def hash_before_payload(self) -> bytes:
        """`h` after the tokens and before the payload of the last message; evidence binds it."""
        return self._hash_before_payload

    @property
    def remote_static(self) -> bytes:
        """The peer's static public key.

        Raises:
            LocalProtocolError: it has not arrived yet.
        """
        if self._remote_static is None:
            raise LocalProtocolError("the peer's static key has not arrived yet")
        return self._remote_static

    def write(self, payload: bytes | PayloadMaker = b"") -> bytes:
        """Return the next message.

        Args:
            payload: what it carries, or a function that makes it from `hash_before_payload`. What
                the first message of XX carries is not secret.

        Raises:
            LocalProtocolError: it is the peer's turn, or the message would be too long.
            ChannelClosed: the handshake has failed or was finished.
            HandshakeFailed: the peer's key is refused.
        """
        state = self._take(writing=True)
        message = b""
        for step in self._messages[self._turn]:
            if step == "e":
                message += self._ephemeral.public
                self._mix_ephemeral(state, self._ephemeral.public)
            elif step == "s":
                message += state.encrypt_and_hash(self._own_static().public)
            else:
                self._mix(state, step)
        self._hash_before_payload = state.h
        content = payload if isinstance(payload, bytes) else payload(state.h)
        message += state.encrypt_and_hash(content)
        if len(message) > MAX_MESSAGE_BYTES:
            raise LocalProtocolError(
                f"a handshake message of {len(message)} bytes; at most {MAX_MESSAGE_BYTES} fit"
            )
        self._advance(state)
        return message

    def read(self, message: bytes) -> bytes:
        """Take the peer's next message and return its payload.

        Raises:
            HandshakeFailed: it is too short, too long, changed, or carries a refused key. The
                handshake cannot go on.
            LocalProtocolError: it is this side's turn.
            ChannelClosed: the handshake has failed or was finished.
        """
        state = self._take(writing=False)
        if len(message) > MAX_MESSAGE_BYTES:
            raise HandshakeFailed("a handshake message of an impossible length")
        position = 0

        def take(size: int) -> bytes:
            nonlocal position
            part = message[position : position + size]
            if len(part) != size:
                raise HandshakeFailed("a handshake message that ends too early")
            position += size
            return part

        try:
            for step in self._messages[self._turn]:
                if step == "e":
                    self._remote_ephemeral = take(KEY_BYTES)
                    self._mix_ephemeral(state, self._remote_ephemeral)
                elif step == "s":
                    sealed = take(KEY_BYTES + (TAG_BYTES if state.keyed else 0))
                    self._remote_static = state.decrypt_and_hash(sealed)
                else:
                    self._mix(state, step)
            self._hash_before_payload = state.h
            payload = state.decrypt_and_hash(message[position:])
        except DecryptFailed as error:
            raise HandshakeFailed(
                "a handshake message was changed, or the two sides do not agree on the prologue",
                message_no=self._turn + 1,
            ) from error
        self._advance(state)
        return payload

    def finish(self) -> Transport:
        """Consume the complete handshake and return the channel.

        Raises:
            LocalProtocolError: messages are still missing.
            ChannelClosed: the handshake has failed or was finished.
        """
        if not self.complete:
            raise LocalProtocolError("the handshake is not complete")
        state = self._state
        if state is None:
            raise ChannelClosed("the handshake was finished before")
        self._state = None
        first, second, exported = state.split()
        wipe(self._ephemeral.private)
        mine, theirs = (first, second) if self._initiator else (second, first)
        return Transport(CipherState(mine), CipherState(theirs), state.h, exported)

    def _take(self, *, writing: bool) -> _Symmetric:
        """Take the state away: unless `_advance` puts it back, the handshake has failed."""
        if self._state is None:
            raise ChannelClosed("the handshake has failed or was finished")
        if self.complete or writing != (self._initiator == (self._turn % 2 == 0)):
            raise LocalProtocolError("it is the other side's turn in the handshake")
        state = self._state
        self._state = None
        return state

    def _advance(self, state: _Symmetric) -> None:
        self._turn += 1
        self._state = state

    def _mix_ephemeral(self, state: _Symmetric, public: bytes) -> None:
        state.mix_hash(public)
        if self._uses_psk:
            state.mix_key(public)

    def _mix(self, state: _Symmetric, step: str) -> None:
        if step == "psk":
            state.mix_key_and_hash(self._psks.pop(0))
            return
        # The first letter is the initiator's key, the second the responder's (section 7.3).
        ours, theirs = (step[0], step[1]) if self._initiator else (step[1], step[0])
        private = (self._ephemeral if ours == "e" else self._own_static()).private
        public = self._remote_ephemeral if theirs == "e" else self._remote_static
        if public is None:
            raise LocalProtocolError(f"the pattern needs a key of the peer for {step!r}")
        secret = shared_secret(private, public)
        state.mix_key(secret)
        wipe(secret)

    def _own_static(self) -> KeyPair:
        if self._static is None:
            raise LocalProtocolError("the pattern needs a static key of this side")
        return self._static

    def _known_static(self, own: bool) -> bytes:
        return self._own_static().public if own else self.remote_static
