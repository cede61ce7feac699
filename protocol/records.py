"""Sealed records: how pages cross a network that may not read, change, drop or repeat them.

A stream is a sequence of records, and each record is::

    header (32 bytes, in the clear) ‖ sealed meta ‖ sealed body (absent when empty)

Every stream has one key per round. The sequence number runs on through all rounds, is part of the
nonce and of the associated data, and only the next one is accepted. So a record that was changed,
dropped, repeated, reordered, or taken from another stream, round or migration does not open. What
remains is cutting the stream off: an authenticated end-of-round record closes each round with its
counts and with a chain over all tags so far, and the next round starts only after it.

These classes are used by the pumps' threads, one stream each, and take no locks. Page content goes
from buffer to buffer inside the cipher and is never copied here. The opener writes where it is told
*before* the tag is verified, so give it a scratch buffer and copy into the arena afterwards.

Driving an opener::

    header = opener.parse_header(32 bytes)
    meta = opener.open_meta(header, the next header.sealed_meta_bytes)
    if header.body_bytes: opener.open_body(header, the next header.sealed_body_bytes, scratch)
"""

import numpy as np

from optmigd.protocol.aeads import Buffer
from optmigd.protocol.errors import (
    ChannelClosed,
    DecryptFailed,
    LocalProtocolError,
    OptmigError,
    RemoteProtocolError,
)
from optmigd.protocol.record_format import (
    DEFAULT_RECORD_BYTES,
    HEADER_BYTES,
    MAX_META_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEQUENCE,
    MIN_RECORD_BYTES,
    PAGE_BYTES,
    RUN,
    EndOfRound,
    FileMeta,
    Header,
    Kind,
    RunArray,
    check_file,
    count_pages,
    max_wire_bytes,
    pack_header,
    pack_run,
    parse_runs,
    unpack_header,
    wire_bytes,
)
from optmigd.protocol.record_stream import (
    Counts,
    RecordStream,
    nonce,
    overall_chain,
    state_digest,
)
from optmigd.protocol.session import SessionKeys
from optmigd.protocol.wire import decode, encode

__all__ = [
    "DEFAULT_RECORD_BYTES",
    "HEADER_BYTES",
    "MAX_META_BYTES",
    "MAX_RECORD_BYTES",
    "MIN_RECORD_BYTES",
    "PAGE_BYTES",
    "RUN",
    "Counts",
    "EndOfRound",
    "FileMeta",
    "Header",
    "Kind",
    "RunArray",
    "StreamOpener",
    "StreamSealer",
    "overall_chain",
    "state_digest",
]


class StreamSealer(RecordStream):
    """Seals the records of one stream, in order.

    Args:
        keys: from `SessionChannel.export_keys`.
        migration_id: 16 bytes.
        stream: number of the stream, from 0.
        cipher: name of the negotiated cipher.
        record_bytes: the most content that one record may have.
        page_bytes: size of a page.
    """

    def __init__(
        self,
        keys: SessionKeys,
        migration_id: bytes,
        stream: int,
        cipher: str,
        *,
        record_bytes: int = DEFAULT_RECORD_BYTES,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        super().__init__(keys, migration_id, stream, cipher, page_bytes)
        self._record_bytes = record_bytes

    @property
    def max_wire_bytes(self) -> int:
        """The size of a buffer that any record of this stream fits into."""
        return max_wire_bytes(self._record_bytes, self.tag_bytes)

    def next_round(self, round_no: int) -> None:
        """Begin a round with a fresh key.

        Raises:
            LocalProtocolError: it is not the next one, the one before was not closed, or that was
                the last.
        """
        if self.ended or not self.round_ended or round_no != self.round_no + 1:
            raise LocalProtocolError(f"round {round_no} cannot follow round {self.round_no}")
        self._begin_round(round_no)

    def seal_pages(self, runs: RunArray, plaintext: Buffer, out: memoryview) -> int:
        """Seal pages with content.

        Args:
            runs: dtype `RUN`, sorted and not overlapping.
            plaintext: the pages' content back to back.
            out: at least `max_wire_bytes` long.

        Returns:
            How many bytes of `out` are the record.

        Raises:
            LocalProtocolError: runs and content do not agree, or it is too much for one record.
        """
        pages = count_pages(runs)
        if pages == 0 or pages * self.page_bytes != len(plaintext):
            raise LocalProtocolError(f"{len(plaintext)} bytes of content for {pages} pages")
        return self._seal(Kind.PAGES, _run_bytes(runs), plaintext, out, pages=pages)

    def seal_run(self, first: int, plaintext: Buffer, out: memoryview) -> int:
        """Seal consecutive pages with content from page `first` on; otherwise as `seal_pages`.

        Nearly all of a first round is sent by this, so it does without arrays.
        """
        pages, part = divmod(len(plaintext), self.page_bytes)
        if pages == 0 or part:
            raise LocalProtocolError(f"{len(plaintext)} bytes of content are not whole pages")
        return self._seal(Kind.PAGES, pack_run(first, pages), plaintext, out, pages=pages)

    def seal_zero(self, runs: RunArray, out: memoryview) -> int:
        """Seal runs of pages that hold only zeros; otherwise as `seal_pages`."""
        pages = count_pages(runs)
        if pages == 0:
            raise LocalProtocolError("a record without pages")
        return self._seal(Kind.ZERO, _run_bytes(runs), b"", out, zero_pages=pages)

    def seal_file(self, meta: FileMeta, content: Buffer, out: memoryview) -> int:
        """Seal a change to a file, with its content for `write`; otherwise as `seal_pages`."""
        try:
            check_file(meta, body_bytes=len(content))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the peer would refuse it: {error.message}") from error
        return self._seal(Kind.FILE, encode(meta), content, out)

    def seal_end(self, out: memoryview, *, last: bool) -> int:
        """Close the round with its counts; otherwise as `seal_pages`.

        Args:
            out: see `seal_pages`.
            last: whether that closes the stream's records, too.
        """
        length = self._seal(Kind.END_OF_ROUND, encode(self._end_of_round(last=last)), b"", out)
        self.ended = last
        return length

    def _seal(
        self,
        kind: Kind,
        meta: Buffer,
        body: Buffer,
        out: memoryview,
        *,
        pages: int = 0,
        zero_pages: int = 0,
    ) -> int:
        cipher = self._cipher
        if cipher is None or self.round_ended:
            raise LocalProtocolError("no round is open on this stream")
        meta_bytes, body_bytes = len(meta), len(body)
        total = wire_bytes(meta_bytes, body_bytes, self.tag_bytes)
        if meta_bytes > MAX_META_BYTES or body_bytes > self._record_bytes or total > len(out):
            raise LocalProtocolError(
                f"a record of {meta_bytes} and {body_bytes} bytes does not fit"
            )
        if self._sequence > MAX_SEQUENCE:
            raise LocalProtocolError("the stream has used up its sequence numbers")
        header = pack_header(
            kind, self.stream, self.round_no, self._sequence, meta_bytes, body_bytes
        )
        ad = self._migration_id + header
        meta_end = HEADER_BYTES + meta_bytes + self.tag_bytes
        out[:HEADER_BYTES] = header
        cipher.seal_into(nonce(2 * self._sequence), meta, ad, out[HEADER_BYTES:meta_end])
        meta_tag = bytes(out[meta_end - self.tag_bytes : meta_end])
        body_tag = b""
        if body_bytes:
            cipher.seal_into(
                nonce(2 * self._sequence + 1), body, ad + meta_tag, out[meta_end:total]
            )
            body_tag = bytes(out[total - self.tag_bytes : total])
        self._record_done(header, kind, meta_tag, body_tag, pages, zero_pages, total)
        return total


def _run_bytes(runs: RunArray) -> Buffer:
    if runs.dtype != RUN:
        raise LocalProtocolError(f"page runs of dtype {runs.dtype}, not {RUN}")
    return np.ascontiguousarray(runs).view(np.uint8).data


class StreamOpener(RecordStream):
    """Opens the records of one stream and accepts only the next one.

    After an error it refuses everything: nothing behind a bad record can be trusted.

    Args:
        keys, migration_id, stream, cipher: as for `StreamSealer`.
        arena_pages: pages of the arena; runs must lie inside.
        record_bytes: the most content that one record may have, as negotiated.
        page_bytes: size of a page.
    """

    def __init__(
        self,
        keys: SessionKeys,
        migration_id: bytes,
        stream: int,
        cipher: str,
        *,
        arena_pages: int,
        record_bytes: int = DEFAULT_RECORD_BYTES,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        super().__init__(keys, migration_id, stream, cipher, page_bytes)
        if not MIN_RECORD_BYTES <= record_bytes <= MAX_RECORD_BYTES:
            raise LocalProtocolError(f"records of {record_bytes} bytes")
        self._arena_pages = arena_pages
        self._record_bytes = record_bytes
        self._meta_scratch = memoryview(bytearray(MAX_META_BYTES))
        self._expected: Header | None = None
        self._opened: tuple[Header, bytes, int] | None = None
        self._broken: OptmigError | None = None

    def parse_header(self, data: Buffer) -> Header:
        """Read the next record's header, before anything is read or allocated for the rest.

        Raises:
            RemoteProtocolError: a bound is broken, see `unpack_header`, or the last round is over.
            DecryptFailed: not the next record of this stream.
            LocalProtocolError: the record before it was not opened to its end.
            ChannelClosed: an earlier record was bad.
        """
        self._refuse_if_broken()
        if self._expected is not None or self._opened is not None:
            raise LocalProtocolError("the record before was not opened to its end")
        try:
            if self.ended:
                raise RemoteProtocolError("a record after the last round")
            header = unpack_header(data, record_bytes=self._record_bytes, tag_bytes=self.tag_bytes)
            due_round = self.round_no + 1 if self.round_ended else self.round_no
            if (header.stream, header.round_no, header.sequence) != (
                self.stream,
                due_round,
                self._sequence,
            ):
                raise DecryptFailed(
                    "a record was dropped, repeated or reordered, or belongs to another stream",
                    expected=(self.stream, due_round, self._sequence),
                    found=(header.stream, header.round_no, header.sequence),
                )
            if header.kind is Kind.PAGES and header.body_bytes % self.page_bytes:
                raise RemoteProtocolError("a record that holds part of a page")
        except OptmigError as error:
            self._broken = error
            raise
        if self.round_ended:
            self._begin_round(due_round)
        self._expected = header
        return header

    def open_meta(self, header: Header, sealed_meta: Buffer) -> RunArray | EndOfRound | FileMeta:
        """Open the part behind the header.

        Returns:
            The page runs of `PAGES` and `ZERO`, the `FileMeta` of `FILE`, the counts of
            `END_OF_ROUND`, which then have been compared with this side's own.

        Raises:
            DecryptFailed: header or meta were changed.
            RemoteProtocolError: the content breaks a bound, or the counts differ.
            LocalProtocolError: this is not the header that was parsed last.
            ChannelClosed: an earlier record was bad.
        """
        self._refuse_if_broken()
        if header is not self._expected or self._cipher is None:
            raise LocalProtocolError("not the header that was parsed last")
        try:
            if len(sealed_meta) != header.sealed_meta_bytes:
                raise DecryptFailed("a record was cut off")
            scratch = self._meta_scratch[: header.meta_bytes]
            ad = self._migration_id + header.raw
            self._cipher.open_into(nonce(2 * header.sequence), sealed_meta, ad, scratch)
            meta, pages = self._read_meta(header, bytes(scratch))
        except OptmigError as error:
            self._broken = error
            raise
        self._expected = None
        meta_tag = bytes(sealed_meta[-self.tag_bytes :])
        if header.body_bytes:
            self._opened = header, meta_tag, pages
        else:
            self._done(header, meta_tag, b"", pages)
        return meta

    def open_body(self, header: Header, sealed_body: Buffer, out: memoryview) -> None:
        """Open the content of a record into `out`, exactly `header.body_bytes` long.

        Do not use what stands in `out` unless this returns.

        Raises:
            DecryptFailed: the content was changed, or belongs to another meta part.
            LocalProtocolError: the meta part was not opened before, or `out` has another length.
            ChannelClosed: an earlier record was bad.
        """
        self._refuse_if_broken()
        if self._opened is None or self._opened[0] is not header or self._cipher is None:
            raise LocalProtocolError("the meta part of this record was not opened before")
        if len(out) != header.body_bytes:
            raise LocalProtocolError(f"{len(out)} bytes of room for {header.body_bytes}")
        _, meta_tag, pages = self._opened
        try:
            if len(sealed_body) != header.sealed_body_bytes:
                raise DecryptFailed("a record was cut off")
            ad = self._migration_id + header.raw + meta_tag
            self._cipher.open_into(nonce(2 * header.sequence + 1), sealed_body, ad, out)
        except OptmigError as error:
            self._broken = error
            raise
        self._opened = None
        self._done(header, meta_tag, bytes(sealed_body[-self.tag_bytes :]), pages)

    def _done(self, header: Header, meta_tag: bytes, body_tag: bytes, pages: int) -> None:
        zero = header.kind is Kind.ZERO
        total = wire_bytes(header.meta_bytes, header.body_bytes, header.tag_bytes)
        counts = (0, pages, total) if zero else (pages, 0, total)
        self._record_done(header.raw, header.kind, meta_tag, body_tag, *counts)

    def _read_meta(
        self, header: Header, content: bytes
    ) -> tuple[RunArray | EndOfRound | FileMeta, int]:
        """The meta part, and how many pages it names."""
        if header.kind is Kind.FILE:
            meta = decode(content, FileMeta)
            return check_file(meta, body_bytes=header.body_bytes), 0
        if header.kind is Kind.END_OF_ROUND:
            end = decode(content, EndOfRound)
            if end != self._end_of_round(last=end.last):
                raise RemoteProtocolError(
                    "the end of a round does not fit what has arrived", round_no=header.round_no
                )
            self.ended = end.last
            return end, 0
        runs = parse_runs(content, arena_pages=self._arena_pages)
        pages = count_pages(runs)
        if header.kind is Kind.PAGES and pages * self.page_bytes != header.body_bytes:
            raise RemoteProtocolError("a record whose page runs do not fit its content")
        return runs, pages

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise ChannelClosed("the stream has failed before", cause=self._broken.code)
