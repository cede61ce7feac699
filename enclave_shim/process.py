"""The application's process: following it, stopping the world in it, ending it.

The agent and the runtime inside the process talk through the control block (`arena.Control`) and
an eventfd that the runtime raises after every change of state; the agent wakes the runtime by
futex. The process is a child of the keeper, so it outlives an agent that crashes.

Quiescing: once no thread counts as parked, `quiesce_seq` is set apart from `resume_seq`, then the
quiesce signal makes every thread save its registers into the arena and wait on `resume_seq`. The
first one that is parked sends the signal to all others. When the last one is parked the runtime
says `PARKED`; from then on nothing writes to the arena until `resume`.
"""

import array
import os
import signal
import socket
from contextlib import suppress

import trio

from optmigd.enclave_shim import abi, linux
from optmigd.enclave_shim.abi import Command, RtState
from optmigd.enclave_shim.arena import Arena, Control
from optmigd.enclave_shim.kept import KeeperClient
from optmigd.protocol.errors import MigrationTimeout, RuntimeFailed

BOOT_TIMEOUT_S = 20.0


class Process:
    """One process of an image; owns its descriptors and control block.

    Made by `optmigd.enclave_shim.starting`: a new one, or one that an earlier agent has started.

    Args:
        arena, ctl: its two shared memories.
        event: the eventfd that the runtime raises.
        pid, pidfd: of the process.
        keeper: its parent.
        tracker: pagemap and uffd (-1 if it has none), and the error that kept it from having one;
            None if the process is yet to send them over `socket`.
        tracker_socket: on which it does.

    """

    def __init__(
        self,
        arena: Arena,
        ctl: Control,
        *,
        event: int,
        pid: int,
        pidfd: int,
        keeper: KeeperClient,
        tracker: tuple[int, int, int] | None = None,
        tracker_socket: socket.socket | None = None,
    ) -> None:
        self.arena = arena
        self.ctl = ctl
        self.pid = pid
        self.pagemap, self.uffd, self.tracker_errno = tracker or (-1, -1, 0)
        self.exited = trio.Event()
        self._event = event
        self._pidfd = pidfd
        self._keeper = keeper
        self._socket = tracker_socket
        self._killed = False
        self._changed = trio.Event()
        self._exit_status: int | None = None

    @property
    def state(self) -> RtState:
        """What the runtime says; `EXITED` as soon as the process is gone."""
        return RtState.EXITED if self.exited.is_set() else RtState(self.ctl["state"])

    @property
    def released(self) -> bool:
        """Whether this instance was made unable to run again."""
        return bool(self.ctl["released"])

    @property
    def ran(self) -> bool:
        """Whether this process has executed any of the program."""
        return bool(self.ctl["running_ns"])

    @property
    def exit_status(self) -> int | None:
        """The program's exit status, 128 + signal if one killed it, None while it lives."""
        return self._exit_status

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the process until it has ended and was reaped; run this in a nursery.

        Cancelled, it waits for the end of a process that was killed; any other it leaves running,
        for the keeper to end or for the next agent to take up.
        """
        ended = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_events)
                task_status.started()
                await trio.lowlevel.wait_readable(self._pidfd)
                ended = True
                nursery.cancel_scope.cancel()
        finally:
            if self._killed and not ended:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.wait_readable(self._pidfd)
                ended = True
            if ended:
                self._note_end(os.waitstatus_to_exitcode(self._keeper.reap()))
            self.exited.set()
            self._announce()
            self._close()

    def _note_end(self, code: int) -> None:
        if code < 0:
            self._exit_status = 128 - code
        elif self.ctl["state"] == RtState.EXITED:
            self._exit_status = self.ctl["exit_status"]
        else:
            self._exit_status = code

    async def _follow_events(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._event)
            os.eventfd_read(self._event)
            self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(
        self, *states: RtState, command: int | None = None, parked: int | None = None
    ) -> None:
        """Wait for one of the states, and for a command to be done, or so many threads parked.

        Raises:
            RuntimeFailed: the runtime reports a failure, or the process ended.

        """
        while True:
            changed = self._changed
            state = self.state
            if state is RtState.FAILED or (state is RtState.EXITED and state not in states):
                raise self._failure()
            if (
                state in states
                and command in (None, self.ctl["command_done"])
                and parked in (None, self.ctl["parked"])
            ):
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
        if self._socket is None:
            return
        with self._socket:
            await trio.lowlevel.wait_readable(self._socket)
            payload, fds, _, _ = socket.recv_fds(self._socket, 4, 2, socket.MSG_CMSG_CLOEXEC)
        if len(payload) != 4:  # the process has ended
            await self.exited.wait()
            raise self._failure()
        self.tracker_errno = array.array("i", payload)[0]
        self.pagemap = fds.pop()
        if fds:
            self.uffd = fds.pop()
        self._keeper.keep_tracker(self.pagemap, self.uffd)

    async def quiesce(self, timeout_s: float) -> None:
        """Park every thread of the program.

        After any other exit than a return, the caller must call `resume`.

        Raises:
            MigrationTimeout: a thread did not park in time.
            RuntimeFailed: the program ended meanwhile.

        """
        with trio.move_on_after(timeout_s) as scope:
            # Threads may still be on their way out of the last park, also of one that was cancelled
            # before it was a whole one. The runtime relies on their being out (see park.c).
            await self._until(RtState.RUNNING, parked=0)
            self.ctl["quiesce_seq"] = (self.ctl["resume_seq"] + 1) & 0xFFFFFFFF
            try:
                signal.pidfd_send_signal(self._pidfd, abi.QUIESCE_SIGNAL)
                self._signal_threads()
            except ProcessLookupError:
                await self.exited.wait()
            await self._until(RtState.PARKED)
        if scope.cancelled_caught:
            raise MigrationTimeout(
                f"the program did not stop within {timeout_s:g} s: "
                f"{self.ctl['parked']} of {self.ctl['threads']} threads parked"
            )

    def _signal_threads(self) -> None:
        """Send the quiesce signal to one thread after the other until one is parked.

        The kernel gives a process's signal to its first thread, even if another one has a processor
        and the first waits for one: among threads that compute that can take as many time slices as
        there are threads. One that runs is interrupted at once, and sends the signal to the others.
        """
        threads = self.arena.rt_state["threads"]
        for tid in threads["tid"][threads["used"] != 0].tolist():
            if self.ctl["parked"]:
                return
            with suppress(OSError):  # it is about to begin or to end, and looks by itself
                linux.signal_thread(self.pid, tid, abi.QUIESCE_SIGNAL)

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
        await self.done(self.ask(command, arg0, arg1))

    def ask(self, command: Command, arg0: int = 0, arg1: int = 0) -> tuple[Command, int]:
        """Have the waiting runtime begin with a command; `done` takes what this returns."""
        sequence = (self.ctl["command_seq"] + 1) & 0xFFFFFFFF
        self.ctl["command"] = command
        self.ctl["command_arg0"] = arg0
        self.ctl["command_arg1"] = arg1
        self.ctl["command_seq"] = sequence
        self.ctl.wake("command_seq")
        return command, sequence

    async def done(self, asked: tuple[Command, int]) -> None:
        """Wait until the runtime has carried out a command.

        Raises:
            RuntimeFailed: the runtime could not do it, or the process ended.

        """
        command, sequence = asked
        match command:
            case Command.PREPARE:
                await self._until(RtState.PREPARED, command=sequence)
            case Command.RUN:
                await self.started()
            case _:
                await self._until(RtState.WAITING, command=sequence)

    @property
    def start_asked(self) -> bool:
        """Whether a waiting instance was told to run, by this agent or an earlier one."""
        pending = self.ctl["command_seq"] != self.ctl["command_done"]
        return self.ran or (pending and self.ctl["command"] == Command.RUN)

    async def started(self) -> None:
        """Wait until an instance that was told to run does so; it may have ended since.

        Raises:
            RuntimeFailed: the runtime could not do it, or the process ended before.

        """
        await self._until(RtState.RUNNING, RtState.PARKED, RtState.EXITED)
        if not self.ran:
            raise self._failure()

    def kill(self) -> None:
        """Kill the process; `exited` follows."""
        self._killed = True
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):  # it ended by itself
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _close(self) -> None:
        for fd in (self.uffd, self.pagemap, self._event, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self.uffd = self.pagemap = self._event = self._pidfd = -1
        self.ctl.close()
