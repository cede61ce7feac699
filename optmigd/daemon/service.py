"""Putting a daemon together, in one nursery."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from optmigd.config import HostIdentity, PeerBook, Settings, parse_address
from optmigd.daemon import requests
from optmigd.daemon.adoption import adopt
from optmigd.daemon.answers import Params
from optmigd.daemon.bandwidth import Bandwidth
from optmigd.daemon.control import ControlServer, Emit, bind_control_socket
from optmigd.daemon.departures import Departures
from optmigd.daemon.events import EventHub
from optmigd.daemon.giving_way import give_way
from optmigd.daemon.host import Host
from optmigd.daemon.images import ImageStore
from optmigd.daemon.journal import Journal
from optmigd.daemon.listener import PeerListener
from optmigd.daemon.registry import Registry
from optmigd.daemon.spawn import AGENT_COMMAND, EnclaveUser
from optmigd.daemon.streams import check_congestion_control
from optmigd.daemon.tickets import Tickets
from optmigd.protocol.errors import ConfigError


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs: what its embedding program, and its peers' operators, need to know."""

    name: str
    address: tuple[str, int]
    socket_path: Path
    key: bytes


async def serve(
    settings: Settings,
    *,
    agent_command: Sequence[str] | None = None,
    task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a daemon until it is cancelled.

    Args:
        settings: from `load_settings`.
        agent_command: how to start a shim agent; None: as this installation does.
        task_status: started with a `Daemon` once peers and clients can connect and the agents of
            an earlier daemon are adopted.

    Raises:
        ConfigError: it cannot start: the message says what to change.

    Cancelled, it has migrations that have not been released resume their programs (for at most
    some seconds), and leaves the shim agents running: the next daemon adopts them.
    """
    user = EnclaveUser.named(settings.enclave_user)
    if agent_command is None:
        sim_root = settings.platform.sim_root_key
        agent_command = (*AGENT_COMMAND, *(("--sim-root", str(sim_root)) if sim_root else ()))
    state_dir = settings.paths.state_dir
    log = structlog.get_logger().bind(host=settings.host.name)
    with _state_directory(state_dir, shared=user is not None):
        identity = HostIdentity.load_or_create(settings.paths.host_key)
        peers = PeerBook.load(state_dir / "peers.toml", settings.peers)
        journal = await Journal.open(state_dir / "journal.db")
        try:
            async with trio.open_nursery() as outer:
                stopped = trio.Event()
                agents = await outer.start(_supervise_until, stopped)
                try:
                    async with trio.open_nursery() as nursery:
                        host = Host(
                            settings=settings,
                            identity=identity,
                            peers=peers,
                            journal=journal,
                            images=ImageStore(
                                state_dir / "images", settings.limits.max_image_bytes
                            ),
                            registry=Registry(
                                state_dir / "enclaves", journal, agents, agent_command, user
                            ),
                            tickets=Tickets(),
                            hub=EventHub(),
                            nursery=nursery,
                            log=log,
                            departures=Departures(settings.limits.max_outgoing),
                            bandwidth=Bandwidth(settings.limits.max_bandwidth),
                        )
                        if settings.platform.name == "sim":
                            log.warning(
                                "platform_simulated",
                                meaning="nothing protects enclaves from this host: for development",
                            )
                        await adopt(host)
                        await _listen(host, task_status)
                finally:
                    stopped.set()
        finally:
            await journal.close()


async def _supervise_until(
    stopped: trio.Event, *, task_status: trio.TaskStatus[trio.Nursery]
) -> None:
    """Hold the nursery of the agents' connections, which end last.

    A daemon that is told to stop has its migrations withdraw, and for that it must still be able
    to talk to its agents.
    """
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as agents:
            task_status.started(agents)
            await stopped.wait()
            agents.cancel_scope.cancel()


async def _listen(host: Host, task_status: trio.TaskStatus[Daemon]) -> None:
    socket_path = host.settings.paths.socket
    check_congestion_control(host.settings.migration.congestion_control)
    address, port = parse_address(host.settings.host.listen, allow_port_zero=True)
    try:
        listeners = await trio.open_tcp_listeners(port, host=address)
    except OSError as error:
        raise ConfigError(
            f"this host cannot listen on {host.settings.host.listen}: {error}; choose another "
            "address with --listen",
        ) from error
    try:
        control_listener = bind_control_socket(socket_path)
    except ConfigError:
        for listener in listeners:
            await listener.aclose()
        raise
    bound = listeners[0].socket.getsockname()
    daemon = Daemon(host.name, (bound[0], bound[1]), socket_path, host.identity.public)

    async def answer(emit: Emit, method: str, params: Params) -> Params:
        return await requests.answer(requests.Context(host, daemon.address, emit), method, params)

    control = ControlServer(answer, host.log)
    peers = PeerListener(host)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, control.serve, [control_listener])
            nursery.start_soon(trio.serve_listeners, peers.serve, listeners)
            nursery.start_soon(give_way, host)
            host.log.info("daemon_started", address=daemon.address, socket=str(socket_path))
            task_status.started(daemon)
    finally:
        socket_path.unlink(missing_ok=True)
        host.log.info("daemon_stopped")


@contextmanager
def _state_directory(path: Path, *, shared: bool) -> Iterator[None]:
    """Make the state directory and keep every other daemon out of it.

    Args:
        path: STATE_DIR.
        shared: enclaves run as another user, who must be able to pass through, not to look around.
    """
    mode = 0o711 if shared else 0o700
    try:
        for directory in (path, path / "images", path / "enclaves"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(mode)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(lock, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the state directory {path} cannot be used: {error}; choose another one with "
            "--state-dir",
            path=str(path),
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another daemon uses the state directory {path}: stop it, or choose another one "
                "with --state-dir",
                path=str(path),
            ) from None
        yield
    finally:
        os.close(lock)
