"""Starting an application's process, and taking up one that an earlier agent has started.

The process is started from a sealed memfd, so what was measured is what runs. The keeper starts it
(see `keeper.py`) and keeps what a later agent needs to go on with it.
"""

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from optmigd.enclave_shim import linux
from optmigd.enclave_shim.abi import Mode
from optmigd.enclave_shim.arena import Arena, Control
from optmigd.enclave_shim.image import Image
from optmigd.enclave_shim.kept import CHILD_FDS, KeeperClient, KeptProcess
from optmigd.enclave_shim.process import Process

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


def start_process(
    keeper: KeeperClient, arena: Arena, image: Image, mode: Mode, how: Start
) -> Process:
    """Start a process of the image; blocks for a few milliseconds.

    Raises:
        OSError: a file could not be opened, or the image could not be executed.
        ValueError: the launch block cannot hold what it is started with.

    """
    with ExitStack() as ours, ExitStack() as theirs:
        ctl = Control(arena.size_bytes)
        ours.callback(ctl.close)
        ctl["mode"] = mode
        if mode is Mode.LAUNCH:
            ctl.set_launch_block(how.argv, how.env, how.shared, how.virtual_dir, how.name)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        ours.callback(os.close, event)
        tracker_socket, their_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.enter_context(tracker_socket)
        theirs.enter_context(their_socket)
        fds = {"arena": arena.fd, "ctl": ctl.fd, "event": event, "socket": their_socket.fileno()}
        for name, path, flags in (
            ("own_dir", how.own_dir, os.O_RDONLY | os.O_DIRECTORY),
            ("output", how.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
            ("stdin", how.stdin or Path(os.devnull), os.O_RDONLY),
        ):
            fds[name] = os.open(path, flags | os.O_CLOEXEC, 0o600)
            theirs.callback(os.close, fds[name])
        fds["image"] = image.sealed_memfd()
        theirs.callback(os.close, fds["image"])
        for name, number in CHILD_FDS.items():
            if name != "image":
                ctl[f"fd_{name}"] = number
        ctl["fd_spare"] = -1
        pid, pidfd = keeper.start(how.name, fds)
        ours.pop_all()
        return Process(
            arena,
            ctl,
            event=event,
            pid=pid,
            pidfd=pidfd,
            keeper=keeper,
            tracker_socket=tracker_socket,
        )


def attach_process(keeper: KeeperClient, kept: KeptProcess, tracker_errno: int) -> Process:
    """Take up a process that has booted under an earlier agent. Its descriptors are used up.

    Args:
        keeper: its parent.
        kept: what the keeper held of it.
        tracker_errno: what an earlier agent was told of the tracker.

    """
    fds = kept.fds
    arena = Arena(os.fstat(fds["arena"]).st_size, fds["arena"])
    return Process(
        arena,
        Control(arena.size_bytes, fds["ctl"]),
        event=fds["event"],
        pid=kept.pid,
        pidfd=kept.pidfd,
        keeper=keeper,
        tracker=(fds["pagemap"], fds.get("uffd", -1), tracker_errno),
    )


def read_image(kept: KeptProcess) -> bytes:
    """The sealed image that the process was started from."""
    fd = kept.fds["image"]
    size_bytes = os.fstat(fd).st_size
    content = bytearray()
    while piece := os.pread(fd, size_bytes - len(content), len(content)):
        content += piece
    return bytes(content)


def discard(keeper: KeeperClient, kept: KeptProcess) -> None:
    """End a process that never came up, and give its memory back; blocks for a moment."""
    kept.kill()
    keeper.reap()
    arena = kept.fds["arena"]
    linux.punch_hole(arena, 0, os.fstat(arena).st_size)
    kept.close()
