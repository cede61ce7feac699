"""The application's process: starting it, stopping the world in it, ending it.

The agent and the runtime inside the process talk through the control block (`arena.Control`) and
an eventfd that the runtime raises after every change of state; the agent wakes the runtime by
futex. The process is started from a sealed memfd, so what was measured is what runs.

Quiescing: `quiesce_seq` is set apart from `resume_seq`, then the quiesce signal makes every thread
save its registers into the arena and wait on `resume_seq`. When the last one is parked the runtime
says `PARKED`; from then on nothing writes to the arena until `resume`.
"""

import array
import os
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.abi import Command, Mode, RtState
from optmigd.enclave_shim.arena import Arena, Control
from optmigd.enclave_shim.image import Image
from optmigd.protocol.errors import MigrationTimeout, RuntimeFailed

BOOT_TIMEOUT_S = 20.0
DEFAULT_OWN_DIR = "/enclave"


@dataclass(frozen=True)
class Start:
    """What a process is started with.

    Attributes:
        name: the enclave's name, argv[0] of the process as the host sees it.
        own_dir: the enclave's own directory on this host.
        output: where the program's stdout and stderr go (appended).
        stdin: what it reads, or empty for nothing.
        virtual_dir: the own directory's path as the program sees it.
        argv, env, shared: for the program; unused when restoring, because they are in the arena.

    """

    name: str
    own_dir: Path
    output: Path
    stdin: Path | None
    virtual_dir: str = DEFAULT_OWN_DIR
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)


class Process:
    """One process of an image, started by constructing it; owns its descriptors and control block.

    Construct it in the main thread, which lives as long as the agent: a process may ask the kernel
    to be killed when the thread that started it ends. Takes a few milliseconds.

    Raises:
        OSError: a file could not be opened, or the image could not be executed.
        ValueError: the launch block cannot hold what it is started with.

    """

    def __init__(self, arena: Arena, image: Image, mode: Mode, how: Start) -> None:
        self.arena = arena
        self.ctl = Control(arena.size_bytes)
        self.uffd = -1
        self.pagemap = -1
        self.tracker_errno = 0
        self.exited = trio.Event()
        self._changed = trio.Event()
        self._exit_status: int | None = None
        ctl = self.ctl
        ctl["mode"] = mode
        if mode is Mode.LAUNCH:
            ctl.set_launch_block(how.argv, how.env, how.shared, how.virtual_dir, how.name)
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as opened:
            opened.enter_context(theirs)
            fds = {
                "arena": arena.fd,
                "ctl": ctl.fd,
                "event": self._event,
                "socket": theirs.fileno(),
            }
            for name, path, flags in (
                ("own_dir", how.own_dir, os.O_RDONLY | os.O_DIRECTORY),
                ("output", how.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
                ("stdin", how.stdin or Path(os.devnull), os.O_RDONLY),
            ):
                fds[name] = os.open(path, flags | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, fds[name])
            for name, fd in fds.items():
                ctl[f"fd_{name}"] = fd
            ctl["fd_spare"] = -1
            image_fd = image.sealed_memfd()
            opened.callback(os.close, image_fd)
            self._popen = subprocess.Popen(
                [how.name],
                executable=f"/proc/self/fd/{image_fd}",
                env={"OPTMIG_CTL": str(ctl.fd)},
                stdin=subprocess.DEVNULL,
                stdout=fds["output"],
                stderr=fds["output"],
                cwd="/",
                pass_fds=[*fds.values(), image_fd],
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._popen.pid)

    @property
    def pid(self) -> int:
        """The process's id on this host."""
        return self._popen.pid

    @property
    def state(self) -> RtState:
        """What the runtime says; `EXITED` as soon as the process is gone."""
        return RtState.EXITED if self.exited.is_set() else RtState(self.ctl["state"])

    @property
    def released(self) -> bool:
        """Whether this instance was made unable to run again."""
        return bool(self.ctl["released"])

    @property
    def exit_status(self) -> int | None:
        """The program's exit status, 128 + signal if one killed it, None while it lives."""
        return self._exit_status

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the process until it has ended and was reaped; run this in a nursery.

        Cancellation kills the process and reaps it.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_events)
                task_status.started()
                await trio.lowlevel.wait_readable(self._pidfd)
                nursery.cancel_scope.cancel()
        finally:
            self.kill()
            code = self._popen.wait()  # at once, or as soon as the kernel has taken it down
            if code < 0:
                self._exit_status = 128 - code
            elif self.ctl["state"] == RtState.EXITED:
                self._exit_status = self.ctl["exit_status"]
            else:
                self._exit_status = code
            self.exited.set()
            self._announce()
            self._close()

    async def _follow_events(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._event)
            os.eventfd_read(self._event)
            self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, *states: RtState, command: int | None = None) -> None:
        """Wait for one of the states, and for a command to be done.

        Raises:
            RuntimeFailed: the runtime reports a failure, or the process ended.

        """
        while True:
            changed = self._changed
            state = self.state
            if state is RtState.FAILED or (state is RtState.EXITED and state not in states):
                raise self._failure()
            if state in states and command in (None, self.ctl["command_done"]):
                return
            await changed.wait()

    def _failure(self) -> RuntimeFailed:
        text = self.ctl.error_text
        error = self.ctl["error"]
        if text:
            why = f"{text} ({os.strerror(error)})" if error else text
        else:
            why = f"the process ended with status {self._exit_status} before it was ready"
        return RuntimeFailed(f"the runtime inside the image failed: {why}", errno=error)

    async def booted(self) -> None:
        """Wait until the program runs (launch) or waits for commands (restore).

        Afterwards `uffd` and `pagemap` are the tracker's descriptors, or `uffd` is -1 and
        `tracker_errno` says why.

        Raises:
            RuntimeFailed: it did not come up within 20 s, or failed.

        """
        with trio.move_on_after(BOOT_TIMEOUT_S) as scope:
            await self._receive_tracker_fds()
            await self._until(RtState.RUNNING, RtState.WAITING, RtState.EXITED)
        if scope.cancelled_caught:
            raise RuntimeFailed(f"the image did not start within {BOOT_TIMEOUT_S:.0f} s")

    async def _receive_tracker_fds(self) -> None:
        with self._socket:
            await trio.lowlevel.wait_readable(self._socket)
            payload, fds, _, _ = socket.recv_fds(self._socket, 4, 2)
        if len(payload) != 4:  # the process has ended
            await self.exited.wait()
            raise self._failure()
        self.tracker_errno = array.array("i", payload)[0]
        self.pagemap = fds.pop()
        if fds:
            self.uffd = fds.pop()

    async def quiesce(self, timeout_s: float) -> None:
        """Park every thread of the program.

        After any other exit than a return, the caller must call `resume`.

        Raises:
            MigrationTimeout: a thread did not park in time.
            RuntimeFailed: the program ended meanwhile.

        """
        with trio.move_on_after(timeout_s) as scope:
            # Threads that were just resumed may still be on their way out of the last parking.
            await self._until(RtState.RUNNING)
            self.ctl["quiesce_seq"] = (self.ctl["resume_seq"] + 1) & 0xFFFFFFFF
            try:
                signal.pidfd_send_signal(self._pidfd, abi.QUIESCE_SIGNAL)
            except ProcessLookupError:
                await self.exited.wait()
            await self._until(RtState.PARKED)
        if scope.cancelled_caught:
            raise MigrationTimeout(
                f"the program did not stop within {timeout_s:g} s: "
                f"{self.ctl['parked']} of {self.ctl['threads']} threads parked"
            )

    def resume(self) -> None:
        """Let parked threads run on; does nothing if none was asked to park."""
        if self.released:
            raise RuntimeError("a released instance never runs again")
        self.ctl["resume_seq"] = self.ctl["quiesce_seq"]
        self.ctl.wake("resume_seq")

    def release(self) -> None:
        """Make this instance unable to run ever again: a thread that wakes exits."""
        self.ctl["released"] = 1

    async def command(self, command: Command, arg0: int = 0, arg1: int = 0) -> None:
        """Have the waiting runtime carry out a command and wait until it has.

        Raises:
            RuntimeFailed: the runtime could not do it, or the process ended.

        """
        sequence = (self.ctl["command_seq"] + 1) & 0xFFFFFFFF
        self.ctl["command"] = command
        self.ctl["command_arg0"] = arg0
        self.ctl["command_arg1"] = arg1
        self.ctl["command_seq"] = sequence
        self.ctl.wake("command_seq")
        match command:
            case Command.PREPARE:
                await self._until(RtState.PREPARED, command=sequence)
            case Command.RUN:
                await self._until(RtState.RUNNING, RtState.EXITED)
            case _:
                await self._until(RtState.WAITING, command=sequence)

    def kill(self) -> None:
        """Kill the process; `exited` follows."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):  # it ended by itself
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _close(self) -> None:
        for fd in (self.uffd, self.pagemap, self._event, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self.uffd = self.pagemap = self._event = self._pidfd = -1
        self.ctl.close()
