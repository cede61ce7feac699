"""The yardstick of the data path: the same bytes, copied as fast as plain Python can, unsealed.

Two processes, one TCP connection on the loopback, and on both ends memory of the kind that an
enclave has: an arena, populated as a destination does it, before the clock starts. The sender sends
straight out of its mapping and the receiver receives straight into its own, so each byte is copied
twice, by the kernel, and touched by nothing else. The best of several chunk sizes is what counts.
"""

import multiprocessing as mp
import os
import socket
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from optmigd.enclave_shim.arena import Arena, as_runs

CHUNK_BYTES = (128 << 10, 256 << 10, 1 << 20)
_TILE_BYTES = 16 << 20
_GIB = float(1 << 30)


@dataclass(frozen=True)
class PlainCopy:
    """One copy: its speed in bytes per second, and CPU seconds per GiB on each side."""

    chunk_bytes: int
    bytes_per_s: float
    sender_cpu_s_per_gib: float
    receiver_cpu_s_per_gib: float


def plain_copies(size_bytes: int, repeats: int = 3) -> list[PlainCopy]:
    """Copy `size_bytes` with each chunk size in turn, `repeats` times.

    Args:
        size_bytes: whole tiles of 16 MiB; both processes take as much memory.
        repeats: copies with each chunk size.

    Raises:
        RuntimeError: the receiving process ended early.
    """
    ours, theirs = mp.get_context("spawn").Pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = mp.get_context("spawn").Process(
            target=_receive, args=(theirs, port, size_bytes, repeats), daemon=True
        )
        child.start()
        theirs.close()
        sock, _ = server.accept()
    # As data streams within one machine: what paces (bbr) takes a third of the speed.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    arena = Arena(size_bytes)
    try:
        with sock:
            _fill(arena)
            copies = [
                _send(arena, sock, chunk_bytes, ours)
                for _ in range(repeats)
                for chunk_bytes in CHUNK_BYTES
            ]
        child.join()
        return copies
    except EOFError as error:
        raise RuntimeError("the receiving process of the plain copy ended early") from error
    finally:
        arena.close()
        child.kill()
        child.join()


def best_of(copies: list[PlainCopy]) -> PlainCopy:
    """The medians of the chunk size that was fastest in the median."""
    medians = []
    for chunk_bytes in CHUNK_BYTES:
        of_size = [copy for copy in copies if copy.chunk_bytes == chunk_bytes]
        medians.append(
            PlainCopy(
                chunk_bytes,
                statistics.median(copy.bytes_per_s for copy in of_size),
                statistics.median(copy.sender_cpu_s_per_gib for copy in of_size),
                statistics.median(copy.receiver_cpu_s_per_gib for copy in of_size),
            )
        )
    return max(medians, key=lambda copy: copy.bytes_per_s)


def _populate(arena: Arena) -> None:
    arena.advise_huge(True)
    arena.populate(as_runs(np.array([0]), np.array([arena.page_count])))
    arena.advise_huge(False)


def _fill(arena: Arena) -> None:
    _populate(arena)
    tile = np.frombuffer(os.urandom(_TILE_BYTES), dtype=np.uint8)
    arena.pages.reshape(-1, _TILE_BYTES)[:] = tile


def _send(arena: Arena, sock: socket.socket, chunk_bytes: int, peer: Connection) -> PlainCopy:
    peer.recv()  # the receiver is ready
    cpu_s, begun_s = time.process_time(), time.perf_counter()
    for at in range(0, arena.size_bytes, chunk_bytes):
        sock.sendall(arena.view[at : at + chunk_bytes])
    if sock.recv(1) != b"\x01":
        raise EOFError
    took_s = time.perf_counter() - begun_s
    cpu_s = time.process_time() - cpu_s
    gib = arena.size_bytes / _GIB
    return PlainCopy(chunk_bytes, arena.size_bytes / took_s, cpu_s / gib, peer.recv() / gib)


def _receive(peer: Connection, port: int, size_bytes: int, repeats: int) -> None:
    arena = Arena(size_bytes)
    _populate(arena)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for _ in range(repeats):
            for chunk_bytes in CHUNK_BYTES:
                peer.send(None)
                cpu_s, at = time.process_time(), 0
                while at < size_bytes:
                    view = arena.view[at : at + chunk_bytes]
                    received = sock.recv_into(view, 0, socket.MSG_WAITALL)
                    if received == 0:
                        return
                    at += received
                cpu_s = time.process_time() - cpu_s
                sock.sendall(b"\x01")
                peer.send(cpu_s)
    arena.close()
