"""How rounds arrive at the destination: receivers, their account, and the memory they fill."""

import socket
from collections.abc import Callable
from functools import partial

import trio

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.abi import Command
from optmigd.enclave_shim.arena import Runs, split_huge
from optmigd.enclave_shim.file_receiver import FileReceiver
from optmigd.enclave_shim.migration.background import run_in_background
from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import Enclave, ReceiveOrders
from optmigd.enclave_shim.migration.conversation import Conversation
from optmigd.enclave_shim.migration.pump import Receiver, RoundMark, windows
from optmigd.protocol.errors import ChannelClosed, RemoteProtocolError
from optmigd.protocol.handoff import Event, Migration
from optmigd.protocol.records import Counts, StreamOpener, overall_chain
from optmigd.protocol.session import Answer, Manifest, RoundDone, SessionKeys

POPULATE_PAGES = 1 << 14
POPULATE_THREADS = 2
YIELD_PAGES = 1 << 9
"""So many are populated without a look whether to wait: a millisecond's work."""
REFUSAL_GRACE_S = 0.3
FEW_MAPPINGS = 64
"""So many are protected in less time than it takes to ask for it."""


async def populate(enclave: Enclave, runs: Runs, gate: BulkGate) -> None:
    """Allocate memory and map it here and in the waiting process, before the first page arrives.

    Threads here allocate, because only this process asks for huge pages; the waiting process maps
    what they have allocated, chunk by chunk behind them.

    Raises:
        RuntimeFailed, OSError: there is not enough memory.

    """
    huge, small = split_huge(runs)
    await _populate_all(enclave, small, gate)
    enclave.arena.advise_huge(True)
    try:
        await _populate_all(enclave, huge, gate)
    finally:
        enclave.arena.advise_huge(False)


async def _populate_all(enclave: Enclave, runs: Runs, gate: BulkGate) -> None:
    chunks = iter(list(windows(runs, POPULATE_PAGES)))
    allocated, to_map = trio.open_memory_channel[Runs](POPULATE_THREADS)

    def populate_chunk(chunk: Runs) -> None:
        for piece in windows(chunk, YIELD_PAGES):
            gate.wait()
            enclave.arena.populate(piece)

    async def allocate(done: trio.MemorySendChannel[Runs]) -> None:
        async with done:
            for chunk in chunks:  # shared by all of these
                await trio.to_thread.run_sync(run_in_background, partial(populate_chunk, chunk))
                await done.send(chunk)

    async with trio.open_nursery() as nursery, allocated:
        for _ in range(POPULATE_THREADS):
            nursery.start_soon(allocate, allocated.clone())
        await allocated.aclose()
        async for chunk in to_map:
            for first, count in chunk.tolist():
                offset, length = first * abi.PAGE_BYTES, count * abi.PAGE_BYTES
                await enclave.process.command(Command.POPULATE, offset, length)


class Arrival:
    """Receives rounds to the last.

    Args:
        enclave: the waiting instance.
        orders: what the daemon has said.
        migration: its place in the table.
        live: whether the program runs at the source while rounds arrive.
    """

    def __init__(
        self, enclave: Enclave, orders: ReceiveOrders, migration: Migration, *, live: bool
    ) -> None:
        self.chain = b""
        self._totals = Counts()
        self._last_round = -1
        self._enclave = enclave
        self._orders = orders
        self._live = live
        self._migration = migration
        self._receivers: list[Receiver] = []
        self._limiter = trio.CapacityLimiter(orders.streams)

    @property
    def received_bytes(self) -> int:
        """Bytes of whole records so far."""
        return sum(receiver.received_bytes for receiver in self._receivers)

    def fits(self, manifest: Manifest) -> bool:
        """Whether what has arrived is, to the record, what the manifest says was sent."""
        totals = self._totals
        found = (self._last_round, totals.records, totals.all_pages, self.chain)
        return found == (manifest.round_no, manifest.records, manifest.pages, manifest.chain)

    async def receive_all(
        self,
        nursery: trio.Nursery,
        conversation: Conversation,
        sockets: list[socket.socket],
        keys: SessionKeys,
        answer: Answer,
    ) -> bytes:
        """Receive and confirm rounds; returns the sealed manifest, which the last round brings.

        The receivers' threads run in `nursery` and end with the last round, or when their sockets
        are shut down.

        Raises:
            ProtocolError, ChannelError: what arrived is not what a source may send.

        """
        streams = self._orders.streams
        send, inbox = trio.open_memory_channel[RoundMark](streams)
        for index, sock in enumerate(sockets):
            nursery.start_soon(
                self._receive_stream, self._receiver(index, sock, keys, answer), send
            )
        keys.forget()  # every stream has derived its own
        marks: dict[int, RoundMark] = {}
        async for mark in inbox:
            if mark.round_no != self._last_round + 1:
                raise RemoteProtocolError("the streams' rounds have come apart")
            marks[mark.stream] = mark
            if len(marks) < streams:
                continue
            if len({one.last for one in marks.values()}) > 1:
                raise RemoteProtocolError("some streams have ended and others have not")
            self._close_round([marks[stream] for stream in range(streams)])
            if mark.last:
                return marks[0].manifest
            marks.clear()
            await conversation.send(self._round_done())
            await self._protect_ahead()
        raise AssertionError("the channel is closed by nobody")

    async def _protect_ahead(self) -> None:
        """Have the waiting process protect its memory as far as that is known by now.

        Many mappings take milliseconds, which the program would stand still for at the end.

        Raises:
            RuntimeFailed: it could not, or has ended.

        """
        enclave = self._enclave
        if enclave.arena.rt_state["vma_count"] > FEW_MAPPINGS:
            await enclave.process.command(Command.PROTECT)

    def send_ready(self, payload: bytes) -> None:
        """Answer the manifest on the stream that brought it.

        Raises:
            ChannelClosed: the stream has broken.

        """
        self._receivers[0].send_ready(payload)

    def _close_round(self, marks: list[RoundMark]) -> None:
        self._last_round += 1
        self._totals = Counts()
        for mark in marks:
            self._totals.add(mark.totals)
        self.chain = overall_chain([mark.chain for mark in marks])
        self._migration.handle(Event.ROUND_RECEIVED)

    def _round_done(self) -> RoundDone:
        totals = self._totals
        return RoundDone(self._last_round, totals.records, totals.all_pages, self.chain)

    def _receiver(
        self,
        index: int,
        sock: socket.socket,
        keys: SessionKeys,
        answer: Answer,
    ) -> Receiver:
        enclave = self._enclave
        opener = StreamOpener(
            keys,
            self._orders.binding.migration_id,
            index,
            answer.cipher,
            arena_pages=enclave.arena.page_count,
            record_bytes=answer.record_bytes,
        )
        receiver = Receiver(
            sock,
            opener,
            enclave.arena,
            FileReceiver(enclave.own_dir, enclave.io_dir),
            record_bytes=answer.record_bytes,
        )
        self._receivers.append(receiver)
        return receiver

    async def _receive_stream(
        self, receiver: Receiver, inbox: trio.MemorySendChannel[RoundMark]
    ) -> None:
        receive: Callable[[], RoundMark | None] = receiver.receive_round
        if self._live:  # round 0, all the memory, while programs here and there go on
            receive = partial(run_in_background, receive)
        try:
            while mark := await trio.to_thread.run_sync(receive, limiter=self._limiter):
                await inbox.send(mark)
                if mark.last:
                    return  # what is done to the stream now may harm nothing
                receive = receiver.receive_round
            raise ChannelClosed("a data stream ended before the last round")
        except ChannelClosed:
            # Most likely the source gave up: then its reason, sealed, is on its way.
            await trio.sleep(REFUSAL_GRACE_S)
            raise
