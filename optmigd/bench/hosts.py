"""Two daemons on this machine's loopback, with keys of their own, as two hosts would have them."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from optmigd.blocking import BlockingClient
from optmigd.conversation import DaemonUnreachable
from optmigd.protocol.errors import OptmigError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Host:
    """A running daemon: its name, a client of it, its process and its folder."""

    name: str
    client: BlockingClient
    process: subprocess.Popen[bytes]
    folder: Path


def start_host(
    name: str, folder: Path, *, listen: str = "127.0.0.1:0", prefix: Sequence[str] = ()
) -> Host:
    """Start a daemon in a folder of its own.

    Args:
        name: of the host.
        folder: for its configuration, state, log and control socket.
        listen: where peers connect; a free port of the loopback if not given.
        prefix: a command that runs the daemon, such as `ip netns exec NAME`.

    Raises:
        RuntimeError: it did not come up; the message has the end of its log.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = folder / "daemon.log"
    socket = folder / "control.sock"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                *prefix,
                *(sys.executable, "-m", "optmigd.cli.serve", "serve"),
                *("--config", str(folder / "optmigd.toml"), "--name", name),
                *("--listen", listen, "--socket", str(socket)),
                *("--state-dir", str(folder / "state")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    client = BlockingClient(socket)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.ping()
            return Host(name, client, process, folder)
        except DaemonUnreachable as error:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                tail = log_path.read_text()[-2000:]
                raise RuntimeError(f"daemon {name} did not start:\n{tail}") from error
        time.sleep(0.05)  # a poll: there is nothing to wait on before the socket exists


def stop_host(host: Host) -> None:
    """End the enclaves that are on the host, then its daemon, whatever state they are in."""
    unanswered = threading.Timer(STOP_TIMEOUT_S, host.process.kill)
    unanswered.start()
    try:
        for status in host.client.list_enclaves():
            if status["state"] not in ("moved", "exited"):
                with suppress(OptmigError):  # it is just arriving, leaving or ending: see below
                    host.client.stop(status["enclave"])
    except DaemonUnreachable:
        pass  # a test may have ended the daemon itself, or it does not answer
    finally:
        unanswered.cancel()
        host.process.terminate()
        try:
            host.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            host.process.kill()
            host.process.wait()
        _end_agents(host)


def _end_agents(host: Host) -> None:
    """End what agents are left: they outlive their daemon, and a measurement must not."""
    for path in host.folder.glob("state/enclaves/*/agent.pid"):
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):  # it ended by itself
            pid = int(path.read_text())
            pidfd = os.pidfd_open(pid)
            try:
                # The number may be another process's by now.
                if str(path.parent).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """Unwind at SIGTERM, so that what was started ends, where nobody else has taken the signal."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def introduce(hosts: list[Host]) -> None:
    """Let every host know the address and key of every other one."""
    identities = {host.name: host.client.host_identity() for host in hosts}
    for host in hosts:
        for name, identity in identities.items():
            if name != host.name:
                host.client.host_add(name, identity["listen"], identity["key"])


@contextmanager
def two_hosts(*, prefix: Sequence[str] = ()) -> Iterator[tuple[Host, Host, Path]]:
    """Start two daemons that know each other, `alpha` and `beta`, and a folder that ends with them.

    Args:
        prefix: a command that runs each daemon.

    Yields:
        both hosts, and a folder for images and the like.

    SIGTERM, like Ctrl-C, ends them first.
    """
    with ExitStack() as cleanup:
        cleanup.enter_context(_terminated_like_ctrl_c())
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="optmigd-")))
        hosts = []
        for name in ("alpha", "beta"):
            hosts.append(start_host(name, folder / name, prefix=prefix))
            cleanup.callback(stop_host, hosts[-1])
        introduce(hosts)
        yield hosts[0], hosts[1], folder


def wait_until_filled(host: Host, enclave: str) -> None:
    """Wait for the line by which a program says that its working set is there."""
    for piece in host.client.logs(enclave, follow=True):
        if b"filled" in piece:
            return
