"""The few kernel interfaces that Python's standard library does not offer.

Each function is a thin, checked call: it raises `OSError` with the kernel's errno, and it releases
the interpreter lock while it waits (ctypes does so for foreign calls).
"""

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.getauxval.restype = ctypes.c_ulong

SYS_FUTEX = 202  # x86-64
SYS_TGKILL = 234
SYS_MEMBARRIER = 324
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
FUTEX_WAKE = 1
MEMBARRIER_CMD_GLOBAL_EXPEDITED = 2
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
AT_MINSIGSTKSZ = 51
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def futex_wake_all(address: int) -> int:
    """Wake every waiter on the 32-bit word at `address` (shared between processes).

    Returns:
        How many were woken.

    """
    return _check(
        _libc.syscall(
            ctypes.c_long(SYS_FUTEX),
            ctypes.c_void_p(address),
            ctypes.c_int(FUTEX_WAKE),
            ctypes.c_int(0x7FFFFFFF),
            None,
            None,
            ctypes.c_int(0),
        ),
        "futex",
    )


def signal_thread(pid: int, tid: int, number: int) -> None:
    """Send a signal to one thread of a process.

    Raises:
        ProcessLookupError: the process has no such thread.

    """
    _check(
        _libc.syscall(
            ctypes.c_long(SYS_TGKILL), ctypes.c_int(pid), ctypes.c_int(tid), ctypes.c_int(number)
        ),
        "tgkill",
    )


def madvise(address: int, length_bytes: int, advice: int) -> None:
    """Advise the kernel on a page-aligned range of this process's memory."""
    _check(
        _libc.madvise(
            ctypes.c_void_p(address), ctypes.c_size_t(length_bytes), ctypes.c_int(advice)
        ),
        "madvise",
    )


def punch_hole(fd: int, offset: int, length_bytes: int) -> None:
    """Give a range of a memory file back to the kernel; it reads as zeros afterwards."""
    _check(
        _libc.fallocate(
            ctypes.c_int(fd),
            ctypes.c_int(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE),
            ctypes.c_long(offset),
            ctypes.c_long(length_bytes),
        ),
        "fallocate",
    )


def huge_memory_file(name: str) -> int:
    """Make a memory file that takes huge pages where whoever maps it advises so.

    A memfd does that only where the administrator has allowed it for the whole host. This file has
    no name, on a tmpfs that is mounted nowhere: like a memfd it lives as long as its descriptors.

    Args:
        name: how the file system's source is called in `/proc/PID/mountinfo`.

    Returns:
        A descriptor.

    Raises:
        OSError: the kernel lacks the interface (Linux 5.2), or the right to mount is missing.

    """
    context = _check(_libc.syscall(ctypes.c_long(SYS_FSOPEN), b"tmpfs", CLOEXEC), "fsopen")
    try:
        options = {"source": name, "huge": "advise", "size": "0", "nr_inodes": "0", "mode": "700"}
        for option, value in options.items():
            _fsconfig(context, FSCONFIG_SET_STRING, option.encode(), value.encode())
        _fsconfig(context, FSCONFIG_CMD_CREATE, None, None)
        flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        mount = _check(
            _libc.syscall(ctypes.c_long(SYS_FSMOUNT), context, CLOEXEC, flags), "fsmount"
        )
    finally:
        os.close(context)
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=mount)
    finally:
        os.close(mount)


def _fsconfig(context: int, command: int, option: bytes | None, value: bytes | None) -> None:
    _check(
        _libc.syscall(ctypes.c_long(SYS_FSCONFIG), context, command, option, value, 0), "fsconfig"
    )


def forbid_dumps() -> None:
    """Keep other processes of the same user, and core files, away from this process's memory."""
    _check(_libc.prctl(ctypes.c_int(PR_SET_DUMPABLE), 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends.

    Call it in a forked process; it holds across exec of an ordinary program.

    Raises:
        ProcessLookupError: the parent has ended already, so nobody would be told.

    """
    _check(
        _libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL), 0, 0, 0),
        "prctl(PR_SET_PDEATHSIG)",
    )
    if os.getppid() != parent_pid:
        raise ProcessLookupError(f"the parent {parent_pid} has ended")


def signal_frame_bytes() -> int:
    """Bytes of the largest signal frame that this kernel and CPU write (XSAVE area included)."""
    return int(_libc.getauxval(ctypes.c_ulong(AT_MINSIGSTKSZ)))


def file_system(path: os.PathLike[str]) -> int:
    """The kind of file system that a path is on: `f_type` of statfs(2)."""
    status = (ctypes.c_long * 15)()
    _check(_libc.statfs(os.fsencode(path), status), os.fspath(path))
    return int(status[0])


def full_barrier() -> None:
    """Order memory: here, and in every thread of a program that marks itself.

    All that any of them wrote before is visible before anything that this thread reads from now on.

    Raises:
        OSError: the kernel has no membarrier (Linux 4.16 or later has).
    """
    _check(_libc.syscall(SYS_MEMBARRIER, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0), "membarrier")
