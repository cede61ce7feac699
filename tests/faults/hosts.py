"""Two hosts for fault injection: wrapped daemons that can be killed, restarted and cut off."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from optmigd.bench.hosts import Host, stop_host
from optmigd.blocking import BlockingClient
from optmigd.conversation import DaemonUnreachable
from tests.faults.gate import GATE, HOST, Gate, gate_at
from tests.faults.wrapped_agent import CRASHES
from tests.faults.wrapped_daemon import DISK_FULL
from tests.support.proxy import Proxy

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0


class FaultyHost:
    """One host: its daemon comes and goes, its port, folder and proxy stay."""

    def __init__(self, name: str, folder: Path, gate: Path | None) -> None:
        self.name = name
        self.folder = folder
        self.client = BlockingClient(folder / "control.sock")
        self._gate = gate
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.listen = f"127.0.0.1:{free.getsockname()[1]}"
        self.proxy = Proxy(("127.0.0.1", int(self.listen.rsplit(":", 1)[1])), record=False)

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def disk_full(self) -> Path:
        """While this file exists, the journal's disk is full."""
        return self.folder / "disk-full"

    def running(self) -> bool:
        """Whether the daemon lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the daemon and return when it answers.

        Raises:
            RuntimeError: it does not; the message has the end of its log.
        """
        environment = os.environ | {HOST: self.name, DISK_FULL: str(self.disk_full)}
        module = "optmigd.cli.serve"
        if self._gate is not None:
            environment[GATE] = str(self._gate)
            module = "tests.faults.wrapped_daemon"
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", module, "serve"),
                    *("--config", str(self.folder / "optmigd.toml"), "--name", self.name),
                    *("--listen", self.listen, "--socket", str(self.folder / "control.sock")),
                    *("--state-dir", str(self.folder / "state")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.client.ping()
            except DaemonUnreachable:
                if not self.running() or time.monotonic() > deadline:
                    self.kill()
                    tail = (self.folder / "daemon.log").read_text()[-2000:]
                    raise RuntimeError(f"daemon {self.name} did not start:\n{tail}") from None
                time.sleep(0.02)  # a poll: there is nothing to wait on before the socket exists
            else:
                return

    def kill(self) -> None:
        """End the daemon by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def agent_pid(self, enclave: str) -> int | None:
        """The newest agent of an enclave on this host, if one lives; never its keeper."""
        folders = sorted(
            self.folder.glob(f"state/enclaves/{enclave}@*"),
            key=lambda path: int(path.name.rsplit("@", 1)[1]),
            reverse=True,
        )
        for folder in folders:
            with suppress(FileNotFoundError, ValueError):
                pid = int((folder / "agent.worker.pid").read_text())
                if alive(pid) and str(folder) in command_line(pid):
                    return pid
        return None

    def crashed_agents(self, enclave: str) -> list[str]:
        """How each agent of an enclave ended on this host that ended by itself and not in peace."""
        try:
            lines = (self.folder / "state" / CRASHES).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if line.startswith(f"{enclave}@")]

    def close(self) -> None:
        """End the daemon and every agent."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            stop_host(Host(self.name, self.client, self._process, self.folder))
        self.proxy.close()


@dataclass
class Faulty:
    """Two hosts, alpha and beta, whose conversations go through proxies, and their gate."""

    alpha: FaultyHost
    beta: FaultyHost
    gate: Gate
    folder: Path

    def host(self, name: str) -> FaultyHost:
        """One of the two by its name."""
        return {"alpha": self.alpha, "beta": self.beta}[name]

    def other(self, host: FaultyHost) -> FaultyHost:
        """The other one."""
        return self.beta if host is self.alpha else self.alpha

    def programs(self, enclave: str) -> dict[int, str]:
        """Every living process of an enclave's program, with the host that it was started on."""
        found = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and command_line(int(path.name)) == f"{enclave}\0":
                pid = int(path.name)
                if alive(pid) and (host := self._host_of(pid)) is not None:
                    found[pid] = host
        return found

    def _host_of(self, pid: int) -> str | None:
        """Its output goes into a file of its host, whatever has become of its parent."""
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(descriptor)
                for host in (self.alpha, self.beta):
                    if target.startswith(f"{host.folder}/"):
                        return host.name
        return None


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie, whose parent has not looked yet, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def command_line(pid: int) -> str:
    """Its arguments, each ended by NUL; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def faulty_hosts(folder: Path, *, gated: bool = True) -> Iterator[Faulty]:
    """Start two daemons that know each other by way of proxies; all ends with the block.

    Args:
        folder: empty, with a short path: UNIX sockets lie in it.
        gated: wrap daemons and agents; without, they are just what a user starts.
    """
    with gate_at(folder / "gate") as gate:
        hosts: list[FaultyHost] = []
        try:
            for name in ("alpha", "beta"):
                hosts.append(FaultyHost(name, folder / name, gate.path if gated else None))
                hosts[-1].start()
            keys = [host.client.host_identity()["key"] for host in hosts]
            alpha, beta = hosts
            alpha.client.host_add("beta", beta.proxy.address, keys[1])
            beta.client.host_add("alpha", alpha.proxy.address, keys[0])
            yield Faulty(alpha, beta, gate, folder)
        finally:
            gate.open()
            for host in hosts:
                host.close()
