"""The AEADs that the bulk ciphers are made of, each sealing from one buffer straight into another.

Page content is never copied in Python, and the interpreter's lock is released while it is sealed,
so the streams' threads run side by side. AES-256-GCM and ChaCha20-Poly1305 are `cryptography`'s.
AEGIS-256 is libsodium's. PyNaCl's public binding of it returns new objects, and at a record's size
that costs more than the sealing, so libsodium is called here as PyNaCl itself calls it. This is the
only place where Python hands pointers to C, and so every length is checked here as well.

A sender seals memory that the program may be writing at that moment. That is sound only because
each of these takes every block of plaintext from memory once; otherwise ciphertext and tag would
not fit each other. A test of this stands in `tests/protocol/test_ciphers.py`.
"""

from typing import Any, ClassVar, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from nacl import bindings

from optmigd.protocol.errors import DecryptFailed, LocalProtocolError
from optmigd.protocol.wiping import wipe

Buffer = bytes | bytearray | memoryview

KEY_BYTES = 32
NONCE_BYTES = 12


class Cipher(Protocol):
    """An AEAD under one key, with its tag behind the ciphertext.

    Args:
        key: 32 bytes that nobody else holds: `forget_key` overwrites them.
    """

    tag_bytes: ClassVar[int]

    def __init__(self, key: bytes) -> None: ...

    def seal_into(self, nonce: bytes, plaintext: Buffer, ad: bytes, out: memoryview) -> None:
        """Seal `plaintext` into `out`, which is exactly `tag_bytes` longer.

        Args:
            nonce: 12 bytes, never used with this key before.
            plaintext: contiguous; may be read-only.
            ad: what is authenticated with it.
            out: contiguous, and no part of `plaintext`.
        """

    def open_into(self, nonce: bytes, sealed: Buffer, ad: bytes, out: memoryview) -> None:
        """Open `sealed` into `out`, which is exactly `tag_bytes` shorter.

        What stands in `out` after an error is worthless: give it a scratch buffer.

        Raises:
            DecryptFailed: the tag does not fit.
        """

    def forget_key(self) -> None:
        """Overwrite the key with zeros; the cipher is of no further use."""


class _Cryptography:
    tag_bytes: ClassVar[int] = 16

    def __init__(self, primitive: AESGCM | ChaCha20Poly1305, key: bytes) -> None:
        self._primitive = primitive
        self._key = key

    def seal_into(self, nonce: bytes, plaintext: Buffer, ad: bytes, out: memoryview) -> None:
        self._primitive.encrypt_into(nonce, plaintext, ad, out)

    def open_into(self, nonce: bytes, sealed: Buffer, ad: bytes, out: memoryview) -> None:
        try:
            self._primitive.decrypt_into(nonce, sealed, ad, out)
        except InvalidTag as error:
            raise _does_not_open() from error

    def forget_key(self) -> None:
        del self._primitive  # OpenSSL cleans its own copy
        wipe(self._key)


class Aes256Gcm(_Cryptography):
    """AES-256-GCM."""

    def __init__(self, key: bytes) -> None:
        super().__init__(AESGCM(key), key)


class ChaCha20(_Cryptography):
    """ChaCha20-Poly1305."""

    def __init__(self, key: bytes) -> None:
        super().__init__(ChaCha20Poly1305(key), key)


class Aegis256:
    """AEGIS-256 with a tag of 32 bytes; construct it only where `AEGIS_256_AVAILABLE`.

    Its nonces have 32 bytes: a shorter one is filled up with zero bytes behind.

    Source: draft-irtf-cfrg-aegis-aead-18, section 2.4.
    """

    tag_bytes: ClassVar[int] = 32
    nonce_bytes: ClassVar[int] = 32

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a key of {len(key)} bytes, not {KEY_BYTES}")
        self._key = key

    def seal_into(self, nonce: bytes, plaintext: Buffer, ad: bytes, out: memoryview) -> None:
        # Released at once, not with the traceback of some error: the arena may have to be closed.
        with _readable(plaintext) as source, _writable(out) as target:
            if len(target) != len(source) + self.tag_bytes:
                raise LocalProtocolError(f"{len(target)} bytes of room to seal {len(source)}")
            _sodium.crypto_aead_aegis256_encrypt(
                target,
                _ffi.NULL,
                source,
                len(source),
                ad,
                len(ad),
                _ffi.NULL,
                self._filled(nonce),
                self._key,
            )

    def open_into(self, nonce: bytes, sealed: Buffer, ad: bytes, out: memoryview) -> None:
        with _readable(sealed) as source, _writable(out) as target:
            if len(source) < self.tag_bytes:
                raise _does_not_open()
            if len(target) + self.tag_bytes != len(source):
                raise LocalProtocolError(f"{len(target)} bytes of room to open {len(source)}")
            failed = _sodium.crypto_aead_aegis256_decrypt(
                target,
                _ffi.NULL,
                _ffi.NULL,
                source,
                len(source),
                ad,
                len(ad),
                self._filled(nonce),
                self._key,
            )
            if failed:
                raise _does_not_open()

    def forget_key(self) -> None:
        wipe(self._key)

    def _filled(self, nonce: bytes) -> bytes:
        if not NONCE_BYTES <= len(nonce) <= self.nonce_bytes:
            raise LocalProtocolError(f"a nonce of {len(nonce)} bytes")
        return nonce.ljust(self.nonce_bytes, b"\0")


def _does_not_open() -> DecryptFailed:
    return DecryptFailed("a record was changed or belongs elsewhere")


def _readable(buffer: Buffer) -> Any:
    return _ffi.from_buffer("unsigned char[]", buffer)


def _writable(buffer: memoryview) -> Any:
    return _ffi.from_buffer("unsigned char[]", buffer, require_writable=True)


def _find_libsodium() -> tuple[Any, Any]:
    """Return PyNaCl's FFI and libsodium, or None twice if they lack AEGIS-256 as used here."""
    try:
        from nacl import _sodium as module
    except ImportError:
        return None, None
    ffi, sodium = getattr(module, "ffi", None), getattr(module, "lib", None)
    wanted = {
        "crypto_aead_aegis256_keybytes": KEY_BYTES,
        "crypto_aead_aegis256_npubbytes": Aegis256.nonce_bytes,
        "crypto_aead_aegis256_abytes": Aegis256.tag_bytes,
    }
    functions = ("crypto_aead_aegis256_encrypt", "crypto_aead_aegis256_decrypt")
    if not all(hasattr(sodium, name) for name in (*wanted, *functions)):
        return None, None
    bindings.sodium_init()  # chooses the implementation that suits the CPU
    if any(getattr(sodium, name)() != size for name, size in wanted.items()):
        return None, None
    return ffi, sodium


_ffi, _sodium = _find_libsodium()
AEGIS_256_AVAILABLE = _sodium is not None
