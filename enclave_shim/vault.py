"""The vault: what one agent leaves to the next, in memory that only they and their keeper have.

It is a memfd of two slots. A record is written to the slot that does not hold the newest one, and
counts when its checksum is right; then the older record is overwritten with zeros. So an agent that
is killed at any moment leaves one whole record, the older or the newer, and keys that are no longer
needed are gone with the next record. It never touches a disk.
"""

import hashlib
import mmap
import struct

from optmigd.enclave_shim.kept import VAULT_BYTES

SLOT_BYTES = VAULT_BYTES // 2
_HEADER = struct.Struct("<QQ32s")  # sequence number from 1, length, digest of both and the record


class VaultFull(ValueError):
    """A record does not fit into a slot."""


def _digest(sequence: int, record: bytes) -> bytes:
    return hashlib.blake2b(struct.pack("<Q", sequence) + record, digest_size=32).digest()


class Vault:
    """The agent's view of the vault, which one agent at a time may have."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, VAULT_BYTES)
        self._map.madvise(mmap.MADV_DONTDUMP)
        found = [(sequence, slot) for slot in (0, 1) if (sequence := self._sequence(slot))]
        self._last, self._slot = max(found, default=(0, 1))
        self._wipe(1 - self._slot)  # what a killed agent had not come to

    def load(self) -> bytes:
        """The newest record; empty if there is none."""
        return self._record(self._slot)[1] if self._last else b""

    def store(self, record: bytes) -> None:
        """Replace the record; done when this returns, and never half done.

        Raises:
            VaultFull: it is too long; the one before stays.

        """
        if len(record) > SLOT_BYTES - _HEADER.size:
            raise VaultFull(f"a record of {len(record)} bytes")
        sequence, slot = self._last + 1, 1 - self._slot
        header = _HEADER.pack(sequence, len(record), _digest(sequence, record))
        start = slot * SLOT_BYTES
        self._map[start : start + _HEADER.size] = header
        self._map[start + _HEADER.size : start + _HEADER.size + len(record)] = record
        self._last, self._slot = sequence, slot
        self._wipe(1 - slot)

    def _wipe(self, slot: int) -> None:
        start = slot * SLOT_BYTES
        _, length, _ = _HEADER.unpack(self._map[start : start + _HEADER.size])
        used = min(length, SLOT_BYTES - _HEADER.size)
        # The header last: while it is there, it says how much there is to wipe.
        body = start + _HEADER.size
        self._map[body : body + used] = bytes(used)
        self._map[start:body] = bytes(_HEADER.size)

    def _sequence(self, slot: int) -> int:
        """The sequence number of a whole record, 0 if there is none."""
        return self._record(slot)[0]

    def _record(self, slot: int) -> tuple[int, bytes]:
        start = slot * SLOT_BYTES
        sequence, length, digest = _HEADER.unpack(self._map[start : start + _HEADER.size])
        if not sequence or length > SLOT_BYTES - _HEADER.size:
            return 0, b""
        start += _HEADER.size
        record = self._map[start : start + length]
        if digest != _digest(sequence, record):
            return 0, b""
        return sequence, record
