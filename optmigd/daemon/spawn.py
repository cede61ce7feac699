"""Starting a shim agent as a process that outlives the daemon.

The agent gets a session of its own (a terminal's Ctrl-C does not reach it), no standard input, and
a pipe on which it says that its socket is ready. The daemon follows it by a pidfd, which works for
agents of an earlier daemon as well and never mistakes one process for another.
"""

import os
import pwd
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

import optmigd
from optmigd.protocol.errors import ConfigError, RuntimeFailed

AGENT_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "optmigd.enclave_shim")
READY_TIMEOUT_S = 60.0
"""It takes half a second, but as many times that as there are programs for each processor."""


@dataclass(frozen=True)
class EnclaveUser:
    """The unprivileged user that a daemon of root starts enclaves as."""

    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> "EnclaveUser | None":
        """Look up a user; None if `name` is empty or is the daemon's own user.

        Raises:
            ConfigError: there is no such user, or only root could become it.
        """
        if not name:
            return None
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise ConfigError(
                f"enclave_user names {name!r}, but this host has no such user: create it or "
                "change the configuration"
            ) from None
        if entry.pw_uid == os.geteuid():
            return None
        if os.geteuid() != 0:
            raise ConfigError(
                f"enclave_user names {name!r}, but only a daemon that runs as root can start "
                "enclaves as another user: leave it empty"
            )
        return cls(entry.pw_uid, entry.pw_gid)


class AgentProcess:
    """A shim agent's process, child of this daemon or of an earlier one."""

    _pidfd = -1

    def __init__(self, pid: int) -> None:
        """Follow a running process.

        Raises:
            ProcessLookupError: there is none.
        """
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)

    async def wait(self) -> None:
        """Return when the process has ended; it is reaped if it was our child."""
        # A descriptor for each task that waits: trio lets only one wait on each.
        pidfd = os.dup(self._pidfd)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        self._reap()

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # an agent of an earlier daemon is not our child
            os.waitpid(self.pid, os.WNOHANG)

    def kill(self) -> None:
        """End the process at once; no error if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


async def start_agent(
    command: Sequence[str], directory: Path, user: EnclaveUser | None
) -> AgentProcess:
    """Start the agent of an instance directory and return when its socket accepts connections.

    Args:
        command: the program; ``--dir`` and ``--ready-fd`` are added.
        directory: INSTANCE_DIR, made by the caller, owned by `user`.
        user: whom to run it as; None: as the daemon.

    Raises:
        RuntimeFailed: it could not be started or ended before it was ready; the message has the
            last line it wrote.

    Cancelled, it leaves no process behind.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            process = await trio.to_thread.run_sync(_popen, command, directory, user, ready_write)
        finally:
            os.close(ready_write)
        try:
            with trio.move_on_after(READY_TIMEOUT_S):
                await trio.lowlevel.wait_readable(ready_read)
            # wait_readable also returns at the end of the pipe, when the process has ended.
            os.set_blocking(ready_read, False)
            with suppress(BlockingIOError):
                if os.read(ready_read, 1):
                    return process
            raise RuntimeFailed(
                f"the shim agent was not ready within {READY_TIMEOUT_S:.0f} s or ended before: "
                f"{_last_words(directory)}",
                directory=str(directory),
            )
        except BaseException:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            raise
    finally:
        os.close(ready_read)


def _popen(
    command: Sequence[str], directory: Path, user: EnclaveUser | None, ready_fd: int
) -> AgentProcess:
    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user.uid, "group": user.gid, "extra_groups": []}
    with open(directory / "agent.err", "ab", opener=_open_private) as errors:
        try:
            child = subprocess.Popen(
                [*command, "--dir", str(directory), "--ready-fd", str(ready_fd)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(ready_fd,),
                start_new_session=True,
                env=_environment(),
                **identity,
            )
        except OSError as error:
            raise RuntimeFailed(
                f"the shim agent cannot be started: {error}", directory=str(directory)
            ) from error
    process = AgentProcess(child.pid)
    # From here on the pidfd follows it: Popen must neither reap it nor warn that it still runs.
    child.returncode = 0
    return process


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _environment() -> dict[str, str]:
    """The daemon's own environment, with this very optmigd importable from a source tree."""
    environment = dict(os.environ)
    # numpy's linear algebra is not used, but its threads would be started, and spin for work.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    root = str(Path(optmigd.__file__).resolve().parent.parent)
    if root != sysconfig.get_path("purelib"):
        paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _last_words(directory: Path) -> str:
    lines = (directory / "agent.err").read_text(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "it wrote nothing to agent.err"
