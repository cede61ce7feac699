"""The keeper: a small process that an enclave survives the crash of its agent by.

The agent is a large Python program with threads. If it dies, the memory, the keys and the
parenthood of the application must not die with it. So the process that the daemon starts is this
one. It does next to nothing, in one thread, with nothing heavy imported, and forks the agent before
anything heavy is. It

- makes the listening socket, so a daemon finds the keeper as its owner, and connections that come
  while no agent is there wait;
- is the application's parent: starts it at the agent's request and reaps it;
- holds what the next agent needs: the memories, the tracker's descriptors, the vault;
- starts a new agent when one ends without being told to, and ends everything when one ends as told.

Agent and application ask the kernel to be killed with the keeper: an enclave without one would run
on with nobody in charge.

A crash loop is slowed, not ended: the program inside does not need its agent to compute, so giving
up would lose it for nothing. An agent that did not live long is followed after a pause that doubles
up to PAUSE_LAST_S.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from optmigd.enclave_shim import linux
from optmigd.enclave_shim.kept import (
    ANSWER,
    CHILD_FDS,
    KEEP_TRACKER,
    KEPT_FDS,
    MAX_MESSAGE_BYTES,
    READY,
    REAP,
    START,
    START_FDS,
    TRACKER_FDS,
    Inheritance,
    KeeperClient,
    KeptProcess,
    make_vault,
)

BACKLOG = 8
PAUSE_FIRST_S = 0.1
PAUSE_LAST_S = 30.0
LONG_LIFE_S = 60.0
"""An agent that lived this long is no part of a crash loop."""
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_HIGH_FD = 64
"""Above every number of CHILD_FDS."""

Work = Callable[[Inheritance], int]
"""The agent: serves until told to shut down; returns its exit status."""


class Keeper:
    """The keeper of the instance directory that is the working directory.

    Args:
        work: the agent, run in forked processes.
        ready_fd: gets one byte when the first agent serves; -1 for none.

    """

    def __init__(self, work: Work, ready_fd: int = -1) -> None:
        self._work = work
        self._ready_fd = ready_fd
        self._ready = False
        self._stopping = False
        self._process: KeptProcess | None = None
        self._agent_pid = 0
        self._restarts = 0
        self._last_end = ""
        self._listener = _listen("agent.sock")
        self._vault_fd = make_vault()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """Keep an agent running until one ends as told, or none ever served.

        Returns:
            The exit status: 0, or the first agent's if it never served.

        """
        signal.set_wakeup_fd(self._wake_write)
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        pause_s = PAUSE_FIRST_S
        try:
            while True:
                began_s = time.monotonic()
                status = self._run_agent()
                if status == 0 or self._stopping:
                    return 0
                if not self._ready:
                    return status if status > 0 else 128 - status
                if time.monotonic() - began_s >= LONG_LIFE_S:
                    pause_s = PAUSE_FIRST_S
                self._restarts += 1
                self._last_end = f"signal {-status}" if status < 0 else f"status {status}"
                print(
                    f"the shim agent ended with {self._last_end}; started again in {pause_s:g} s",
                    file=sys.stderr,
                    flush=True,
                )
                if self._pause(pause_s):
                    return 0
                pause_s = min(2 * pause_s, PAUSE_LAST_S)
        finally:
            self._end_process()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True
        if self._agent_pid:
            os.kill(self._agent_pid, signal.SIGTERM)

    def _pause(self, pause_s: float) -> bool:
        """Wait; true if told to stop meanwhile."""
        if not self._stopping:
            select.select([self._wake_read], [], [], pause_s)
        return self._stopping

    def _end_process(self) -> None:
        if self._process is not None:
            if self._process.wait_status is None:
                self._process.kill()
                self._process.reap()
            self._process.close()
            self._process = None

    # ---- the agent ----

    def _run_agent(self) -> int:
        """Fork an agent and serve it until it has ended; its exit status, negative for a signal."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper_pid = os.getpid()
        with ours:
            # A signal that comes between fork and the new handlers must not be lost on the way.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            if self._stopping:
                theirs.close()
                return 0
            pid = os.fork()
            if pid == 0:
                ours.close()
                _become(keeper_pid, lambda: self._work(self._inheritance(theirs)))
            theirs.close()
            self._agent_pid = pid
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            pidfd = os.pidfd_open(pid)
            try:
                self._serve(ours, pidfd)
            finally:
                os.close(pidfd)
                # From here on the number may be another process's.
                self._agent_pid = 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _inheritance(self, channel: socket.socket) -> Inheritance:
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
        return Inheritance(
            self._listener,
            self._vault_fd,
            KeeperClient(channel),
            self._process,
            self._restarts,
            self._last_end,
        )

    def _serve(self, channel: socket.socket, pidfd: int) -> None:
        """Answer the agent's requests until it has ended."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(channel, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if pidfd in ready:  # what it has still asked for, nobody waits for
                return
            try:
                request, fds, _, _ = socket.recv_fds(
                    channel, MAX_MESSAGE_BYTES, len(START_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                request = b""
            if not request:
                poll.unregister(channel)  # it is ending
                continue
            try:
                value, extra = self._answer(request, fds)
                answer = ANSWER.pack(0, value)
            except OSError as error:
                answer, extra = ANSWER.pack(error.errno or errno.EIO, 0), []
            with suppress(BrokenPipeError, ConnectionResetError):  # it has ended meanwhile
                socket.send_fds(channel, [answer], extra)

    def _answer(self, request: bytes, fds: list[int]) -> tuple[int, list[int]]:
        kind = request[:1]
        if kind == START and len(fds) == len(START_FDS):
            named = dict(zip(START_FDS, fds, strict=True))
            self._process = self._start(os.fsdecode(request[1:]), named)
            return self._process.pid, [self._process.pidfd]
        if kind == KEEP_TRACKER and self._process is not None:
            self._process.fds.update(zip(TRACKER_FDS, fds, strict=False))
            return 0, []
        for fd in fds:
            os.close(fd)
        if kind == REAP and self._process is not None:
            return self._process.reap(), []
        if kind == READY:
            self._say_ready()
            return 0, []
        raise OSError(errno.EINVAL, "a request that the keeper does not know")

    def _say_ready(self) -> None:
        self._ready = True
        if self._ready_fd >= 0:
            with suppress(BrokenPipeError):  # who started this does not wait any more
                os.write(self._ready_fd, b"\x01")
            os.close(self._ready_fd)
            self._ready_fd = -1

    # ---- the application ----

    def _start(self, name: str, fds: dict[str, int]) -> KeptProcess:
        """Fork and exec the image; see `KeeperClient.start`. The descriptors are the keeper's."""
        try:
            if self._process is not None and self._process.wait_status is None:
                raise OSError(errno.EBUSY, "an application runs already")
            pid = _spawn(name, fds)
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            raise
        if self._process is not None:
            self._process.close()
        for unkept in set(fds) - set(KEPT_FDS):
            os.close(fds.pop(unkept))
        return KeptProcess(pid, fds)


def _listen(path: str) -> socket.socket:
    """A listening socket at `path`, which only this user can connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        os.unlink(path)
    old_mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old_mask)
    listener.listen(BACKLOG)
    return listener


def _become(keeper_pid: int, work: Callable[[], int]) -> None:
    """In a forked process: work, and end; never returns."""
    status = 1
    try:
        linux.die_with_parent(keeper_pid)
        _default_signals()
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _spawn(name: str, fds: dict[str, int]) -> int:
    """Fork and exec the image in `fds`, in a session of its own.

    Raises:
        OSError: what kept it from being executed.

    """
    keeper_pid = os.getpid()
    failed_read, failed_write = os.pipe2(os.O_CLOEXEC)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    pid = os.fork()
    if pid == 0:
        try:
            _exec(keeper_pid, name, fds)
        except BaseException as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            os.write(failed_write, number.to_bytes(4, "little"))
        finally:
            os._exit(127)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.close(failed_write)
    with open(failed_read, "rb") as failed:
        report = failed.read(4)
    if report:
        os.waitpid(pid, 0)
        number = int.from_bytes(report, "little")
        raise OSError(number, os.strerror(number))
    return pid


def _exec(keeper_pid: int, name: str, fds: dict[str, int]) -> None:
    linux.die_with_parent(keeper_pid)
    os.setsid()
    os.chdir("/")
    _default_signals()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    # First out of the way: a number that is wanted may be taken by another of them.
    high = {what: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD) for what, fd in fds.items()}
    for what, fd in CHILD_FDS.items():
        os.dup2(high[what], fd)
    for standard in (1, 2):
        os.dup2(high["output"], standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    image = f"/proc/self/fd/{CHILD_FDS['image']}"
    os.execve(image, [name], {"OPTMIG_CTL": str(CHILD_FDS["ctl"])})
