"""What sealing and opening a stream have in common, and the digests over what was transferred.

The digests are kept up record by record, so that nothing of the arena is read again while the
program stands still.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from optmigd.protocol.aeads import Cipher
from optmigd.protocol.ciphers import RoundKeys, cipher_under, tag_bytes
from optmigd.protocol.errors import LocalProtocolError
from optmigd.protocol.record_format import EndOfRound, Kind
from optmigd.protocol.session import SessionKeys

_CHAIN_LABEL = b"optmigd stream chain v1"
_OVERALL_LABEL = b"optmigd overall chain v1"
_STATE_LABEL = b"optmigd state digest v1"
_NONCE = struct.Struct("<IQ")


@dataclass
class Counts:
    """What went over one stream.

    Args:
        records: all kinds but end-of-round.
        pages: with content.
        zero_pages: without.
        bytes: on the wire, without end-of-round records.
    """

    records: int = 0
    pages: int = 0
    zero_pages: int = 0
    bytes: int = 0

    @property
    def all_pages(self) -> int:
        """Pages with content and zero pages together."""
        return self.pages + self.zero_pages

    def add(self, other: "Counts") -> None:
        """Add another's counts to these."""
        self.records += other.records
        self.pages += other.pages
        self.zero_pages += other.zero_pages
        self.bytes += other.bytes


class RecordStream:
    """What sealing and opening have in common: keys, place in the stream, chain and counts."""

    def __init__(
        self, keys: SessionKeys, migration_id: bytes, stream: int, cipher: str, page_bytes: int
    ) -> None:
        if len(migration_id) != 16:
            raise LocalProtocolError(f"a migration id has 16 bytes; found {len(migration_id)}")
        self.stream = stream
        self.page_bytes = page_bytes
        self.tag_bytes = tag_bytes(cipher)
        self.round_no = -1
        self.round_ended = True
        self.ended = False
        self.round_counts = Counts()
        self.total_counts = Counts()
        self._round_keys = RoundKeys(keys.records_secret, cipher, stream)
        self._cipher_name = cipher
        self._migration_id = migration_id
        self._sequence = 0
        self._cipher: Cipher | None = None
        self._chain = hashlib.sha256(_CHAIN_LABEL + migration_id + stream.to_bytes(2, "little"))

    @property
    def chain(self) -> bytes:
        """SHA-256 over header, meta tag and body tag of every record so far."""
        return self._chain.copy().digest()

    def _begin_round(self, round_no: int) -> None:
        self._cipher = cipher_under(self._round_keys.next(), self._cipher_name)
        self.round_no = round_no
        self.round_ended = False
        self.round_counts = Counts()

    def _record_done(
        self,
        header: bytes,
        kind: Kind,
        meta_tag: bytes,
        body_tag: bytes,
        pages: int,
        zero_pages: int,
        wire_bytes: int,
    ) -> None:
        self._chain.update(header + meta_tag + body_tag)
        self._sequence += 1
        if kind is Kind.END_OF_ROUND:
            self.round_ended = True
            self._forget_round_key()
            return
        for counts in (self.round_counts, self.total_counts):
            counts.records += 1
            counts.pages += pages
            counts.zero_pages += zero_pages
            counts.bytes += wire_bytes

    def _forget_round_key(self) -> None:
        """A round's key lives no longer than the round."""
        if self._cipher is not None:
            self._cipher.forget_key()
            self._cipher = None

    def _end_of_round(self, *, last: bool) -> EndOfRound:
        counts = self.round_counts
        return EndOfRound(
            counts.records, counts.pages, counts.zero_pages, counts.bytes, self.chain, last
        )


def nonce(counter: int) -> bytes:
    return _NONCE.pack(0, counter)


def overall_chain(chains: Sequence[bytes]) -> bytes:
    """Return the chain over all streams, given in the order of their numbers.

    Raises:
        LocalProtocolError: one is not 32 bytes.
    """
    if any(len(chain) != 32 for chain in chains):
        raise LocalProtocolError("a stream's chain has 32 bytes")
    count = len(chains).to_bytes(2, "little")
    return hashlib.sha256(_OVERALL_LABEL + count + b"".join(chains)).digest()


def state_digest(migration_id: bytes, generation: int, chain: bytes, manifest: bytes) -> bytes:
    """Return the digest of all that was transferred; both sides compute it, and must agree.

    Args:
        migration_id: 16 bytes.
        generation: the generation that the destination will have.
        chain: `overall_chain` as the side that computes it has seen the streams.
        manifest: `encode` of the `Manifest`.
    """
    if (len(migration_id), len(chain)) != (16, 32):
        raise LocalProtocolError("a migration id has 16 bytes and a chain 32")
    fixed = _STATE_LABEL + migration_id + generation.to_bytes(8, "little") + chain
    return hashlib.sha256(fixed + manifest).digest()
