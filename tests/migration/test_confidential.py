"""Nothing in the clear: a marker in enclave memory is in no byte that leaves the enclave."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

from optmigd.bench.hosts import Host
from optmigd.blocking import BlockingClient
from tests.conftest import BuildProgram
from tests.support.proxy import proxy_to

MARKER = b"the-owner's-secret-marker"


class RecordingControlSocket:
    """A UNIX socket in front of a daemon's control socket that keeps every byte."""

    def __init__(self, path: Path, target: Path) -> None:
        self.recorded = bytearray()
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._target))
            self._sockets += (near, far)
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self.recorded += piece
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


def test_a_marker_in_memory_leaves_nowhere(
    program: BuildProgram, fresh_pair: tuple[Host, Host], tmp_path: Path
) -> None:
    alpha, beta = fresh_pair
    identity = beta.client.host_identity()
    control = RecordingControlSocket(tmp_path / "control.sock", alpha.client.socket)
    client = BlockingClient(tmp_path / "control.sock")
    try:
        with proxy_to(identity["listen"]) as proxy:
            client.host_add("beta", proxy.address, identity["key"])
            # The marker reaches the program as a file of the host's, outside state and link.
            secret = tmp_path / "secret"
            secret.write_bytes(MARKER)
            client.launch(
                program("keeper").image,
                enclave="keeper",
                memory_bytes=256 << 20,
                args=[str(secret)],
            )
            for piece in client.logs("keeper", follow=True):
                if b"ready" in piece:
                    break
            moved = client.migrate("keeper", "beta", verify=True)
            assert moved["verified"] is True
            # It is still there, so it did travel.
            assert client.wait("keeper")["exit_status"] == 0
            assert b"copies of the marker: 1000" in b"".join(client.logs("keeper"))
            wire = [bytes(log) for log in proxy.recorded]
        assert sum(map(len, wire)) > 1000 * 4096
        assert any(log.startswith(b"OPTMIGD1") for log in wire)
        for log in wire:
            assert MARKER not in log
        assert MARKER not in control.recorded
    finally:
        control.close()
    for host in fresh_pair:
        files = [path for path in host.folder.rglob("*") if path.is_file()]
        assert any(path.name == "agent.log" for path in files)
        for path in files:
            assert MARKER not in path.read_bytes(), f"the marker is in {path}"
