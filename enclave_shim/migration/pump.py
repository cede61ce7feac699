"""The pumps: what moves pages between the arena and the data streams.

Each end of a data stream is worked by one thread, which a nursery starts and stops: trio is not in
the path of the bulk. A sender takes its share of a round's runs, finds the zero pages, and gathers,
seals and sends the rest record by record; a receiver reads, opens and places. Both keep a fixed set
of buffers, so memory does not grow with the enclave, and a slow peer slows its sender by the
socket alone. Sealing reads memory that the program may be writing: what is sealed is then some mix
of old and new, authenticated as it was sent, and the page is dirty again and will be sent again.

A page belongs to one stream for the whole migration, by its number, so its versions arrive in
order. Whoever wants a pump to stop shuts its socket down; the thread then ends with an error.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.arena import (
    Arena,
    Runs,
    as_runs,
    pages_of_runs,
    runs_of_pages,
    zero_pages,
)
from optmigd.enclave_shim.file_receiver import FileReceiver
from optmigd.enclave_shim.files import Step
from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.handoff_frames import broken_stream_told, send_short_frame
from optmigd.protocol.errors import ChannelClosed
from optmigd.protocol.record_format import MAX_RUNS
from optmigd.protocol.records import (
    HEADER_BYTES,
    MAX_META_BYTES,
    Counts,
    EndOfRound,
    FileMeta,
    Header,
    Kind,
    StreamOpener,
    StreamSealer,
)
from optmigd.protocol.wire import LENGTH_BYTES, announced_bytes, frame

WINDOW_PAGES = 1 << 14
LONG_RUN_PAGES = 32
"""Runs of so many pages have records of their own: below, gathering costs less than a record."""


def share_of_stream(runs: Runs, stream: int, streams: int, group_pages: int) -> Runs:
    """The part of the runs that travels on one stream: every `streams`-th group of pages."""
    if streams == 1 or len(runs) == 0:
        return runs
    first = runs["first"].astype(np.int64)
    end = first + runs["count"]
    pieces = (end - 1) // group_pages - first // group_pages + 1
    offsets = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    group = np.repeat(first // group_pages, pieces) + offsets
    mine = group % streams == stream
    group = group[mine]
    starts = np.maximum(np.repeat(first, pieces)[mine], group * group_pages)
    ends = np.minimum(np.repeat(end, pieces)[mine], (group + 1) * group_pages)
    return as_runs(starts, ends - starts)


def windows(runs: Runs, limit_pages: int) -> Iterable[Runs]:
    """Cut runs into consecutive parts of at most that many pages each."""
    if len(runs) == 0:
        return
    first = runs["first"].astype(np.int64)
    count = runs["count"].astype(np.int64)
    # Cut long runs first, so that a part is always a slice of whole runs.
    pieces = -(-count // limit_pages)
    offsets = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(first, pieces) + offsets * limit_pages
    counts = np.minimum(np.repeat(first + count, pieces) - starts, limit_pages)
    cut = as_runs(starts, counts)
    ends = np.cumsum(counts)
    at = 0
    while at < len(cut):
        done = int(ends[at - 1]) if at else 0
        stop = int(np.searchsorted(ends, done + limit_pages, side="right"))
        yield cut[at:stop]
        at = stop


class Sender:
    """The sending end of one data stream. What sends blocks; the rest is for other threads."""

    def __init__(
        self,
        sock: socket.socket,
        sealer: StreamSealer,
        arena: Arena,
        gate: BulkGate,
        *,
        streams: int,
        record_bytes: int,
    ) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._sealer = sealer
        self._arena = arena
        self._gate = gate
        self._streams = streams
        self._record_pages = record_bytes // abi.PAGE_BYTES
        self._out = memoryview(bytearray(sealer.max_wire_bytes))
        self._gathered = np.empty((self._record_pages, abi.PAGE_BYTES), dtype=np.uint8)

    @property
    def sent_bytes(self) -> int:
        """Bytes sealed for the wire so far; grows while a round is under way."""
        return self._sealer.total_counts.bytes

    @property
    def totals(self) -> Counts:
        """Counts over all rounds so far."""
        return self._sealer.total_counts

    @property
    def chain(self) -> bytes:
        """The chain over all records so far."""
        return self._sealer.chain

    def send_pages(self, round_no: int, runs: Runs, holes: Runs) -> None:
        """Send this stream's share of some pages; a round that is not open is begun.

        Args:
            round_no: the round that is open, or the next.
            runs: pages to read and send, over all streams.
            holes: pages known to read as zeros, over all streams.

        Raises:
            ChannelClosed: the stream broke, or was shut down to stop this.

        """
        if self._sealer.round_ended:
            self._sealer.next_round(round_no)
        self._send_zero(self._share(holes))
        for window in windows(self._share(runs), WINDOW_PAGES):
            self._send_window(window)

    def send_files(self, steps: Iterable[Step]) -> None:
        """Send changes of files as part of the round that `send_pages` began.

        Args:
            steps: for this stream alone.

        Raises:
            ChannelClosed: as for `send_pages`.
            OSError: a file could not be read.

        """
        for change, content in steps:
            self._send(self._sealer.seal_file(change, content, self._out))

    def close_round(self, *, last: bool) -> Counts:
        """Close the round that `send_pages` began.

        Args:
            last: whether no round follows.

        Returns:
            What the round took on this stream.

        Raises:
            ChannelClosed: as for `send_pages`.

        """
        sealer = self._sealer
        counts = replace(sealer.round_counts)
        self._send(sealer.seal_end(self._out, last=last))
        return counts

    def send_manifest(self, payload: bytes) -> None:
        """Send the sealed manifest behind the last round; blocks, and raises, like that."""
        self._send_all(frame(payload))

    def _share(self, runs: Runs) -> Runs:
        return share_of_stream(runs, self._sealer.stream, self._streams, self._record_pages)

    def _send_window(self, window: Runs) -> None:
        pages = pages_of_runs(window)
        zero = zero_pages(self._arena.pages, pages)
        if zero.any():
            self._send_zero(runs_of_pages(pages[zero]))
            window = runs_of_pages(pages[~zero])
        long = window["count"] >= LONG_RUN_PAGES
        for first, count in window[long].tolist():
            self._send_run(first, count)
        for part in windows(window[~long], self._record_pages):
            self._send_gathered(part)

    def _send_run(self, first: int, count: int) -> None:
        """Seal consecutive pages straight out of the arena, record by record."""
        at, end = first * abi.PAGE_BYTES, (first + count) * abi.PAGE_BYTES
        record_bytes = self._record_pages * abi.PAGE_BYTES
        while at < end:
            content = self._arena.view[at : min(at + record_bytes, end)]
            self._send(self._sealer.seal_run(at // abi.PAGE_BYTES, content, self._out))
            at += record_bytes

    def _send_gathered(self, runs: Runs) -> None:
        pages = pages_of_runs(runs)
        gathered = self._gathered[: len(pages)]
        # With mode "clip" numpy writes straight into the buffer.
        np.take(self._arena.pages, pages, axis=0, out=gathered, mode="clip")
        content = gathered.reshape(-1).data
        self._send(self._sealer.seal_pages(runs, content, self._out))

    def _send_zero(self, runs: Runs) -> None:
        for at in range(0, len(runs), MAX_RUNS):
            self._send(self._sealer.seal_zero(runs[at : at + MAX_RUNS], self._out))

    def _send(self, length: int) -> None:
        self._gate.wait()
        self._send_all(self._out[:length])

    def _send_all(self, content: memoryview | bytes) -> None:
        with broken_stream_told():
            self._sock.sendall(content)


@dataclass(frozen=True)
class RoundMark:
    """A stream has received a whole round: totals and chain up to and with its end.

    `last`: no round follows; then the first stream has the sealed `manifest`.
    """

    stream: int
    round_no: int
    totals: Counts
    chain: bytes
    last: bool = False
    manifest: bytes = b""


class Receiver:
    """The receiving end of one data stream. `receive_round` blocks.

    Args:
        sock, opener, arena: of this stream.
        files: where changes of files are applied.
        record_bytes: the most content of one record.

    """

    def __init__(
        self,
        sock: socket.socket,
        opener: StreamOpener,
        arena: Arena,
        files: FileReceiver,
        *,
        record_bytes: int,
    ) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._opener = opener
        self._arena = arena
        self._files = files
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._meta = memoryview(bytearray(MAX_META_BYTES + opener.tag_bytes))
        self._sealed = memoryview(bytearray(record_bytes + opener.tag_bytes))
        self._opened = memoryview(bytearray(record_bytes))
        self._written_end = 0

    @property
    def received_bytes(self) -> int:
        """Bytes of whole records so far."""
        return self._opener.total_counts.bytes

    def receive_round(self) -> RoundMark | None:
        """Receive records to the end of a round; None if the peer has closed the stream instead.

        Pages are opened straight into the arena: until the manifest was verified its content is
        worthless anyway, and a record that does not open ends the migration.

        Raises:
            ProtocolError, ChannelError: what arrived is not the next record as it was sealed.
            ChannelClosed: the stream broke, or was shut down to stop this.

        """
        try:
            return self._receive_records()
        finally:
            self._files.release()

    def _receive_records(self) -> RoundMark | None:
        opener = self._opener
        while self._receive(self._header, may_end=True):
            header = opener.parse_header(self._header)
            sealed_meta = self._meta[: header.sealed_meta_bytes]
            self._receive(sealed_meta)
            meta = opener.open_meta(header, sealed_meta)
            if isinstance(meta, FileMeta):
                self._files.apply(meta, self._open_body(header))
            elif isinstance(meta, EndOfRound):
                totals = replace(opener.total_counts)
                manifest = self._receive_manifest() if meta.last and opener.stream == 0 else b""
                return RoundMark(
                    opener.stream, opener.round_no, totals, opener.chain, meta.last, manifest
                )
            elif header.kind is Kind.ZERO:
                self._place_zeros(meta)
            else:
                self._place(header, meta)
        return None

    def send_ready(self, payload: bytes) -> None:
        """Send the sealed answer to the manifest; see `send_short_frame`."""
        send_short_frame(self._sock, payload)

    def _receive_manifest(self) -> bytes:
        length = memoryview(bytearray(LENGTH_BYTES))
        self._receive(length)
        payload = memoryview(bytearray(announced_bytes(length)))
        self._receive(payload)
        return bytes(payload)

    def _open_body(self, header: Header, out: memoryview | None = None) -> memoryview:
        if out is None:
            out = self._opened[: header.body_bytes]
        if header.body_bytes:
            sealed = self._sealed[: header.sealed_body_bytes]
            self._receive(sealed)
            self._opener.open_body(header, sealed, out)
        return out

    def _place(self, header: Header, runs: Runs) -> None:
        last_first, last_count = runs[-1].item()
        self._written_end = max(self._written_end, last_first + last_count)
        if len(runs) == 1:
            first = last_first * abi.PAGE_BYTES
            self._open_body(header, self._arena.view[first : first + header.body_bytes])
            return
        content = np.frombuffer(self._open_body(header), dtype=np.uint8)
        self._arena.pages[pages_of_runs(runs)] = content.reshape(-1, abi.PAGE_BYTES)

    def _place_zeros(self, runs: Runs) -> None:
        """Clear the named pages, but for those that this stream never wrote: they are fresh."""
        written = np.searchsorted(runs["first"], self._written_end)
        self._arena.write_zeros(runs[:written])

    def _receive(self, buffer: memoryview, *, may_end: bool = False) -> bool:
        """Fill the buffer; False if the peer closed the stream before its first byte."""
        at = 0
        while at < len(buffer):
            rest = buffer[at:] if at else buffer
            with broken_stream_told():
                received = self._sock.recv_into(rest, 0, socket.MSG_WAITALL)
            if received == 0:
                if may_end and at == 0:
                    return False
                raise ChannelClosed("a data stream ended in the middle of a record")
            at += received
        return True
