"""What the agent shares with the C runtime: the Python mirror of `runtime/abi.h`.

The header is the source; a test compiles it and compares every constant, size and offset with the
numpy dtypes below, so a change on one side alone cannot go unnoticed. Structures are read and
written in place, through numpy views of the shared memory: nothing is copied or parsed.
"""

from enum import IntEnum

import numpy as np

ABI_VERSION = 9
CTL_MAGIC = 0x4C54434D4954504F
RT_MAGIC = 0x54524D4954504F01

PAGE_BYTES = 4096
ARENA_BASE = 0x100000000000
CTL_BASE = 0x0FF000000000
LAUNCH_BYTES = 1 << 20
FILE_MARKS_OFFSET = LAUNCH_BYTES
FILE_MARKS = 1 << 20
FILE_WHOLE_MARKS = 4096
FILE_MARKS_FACTOR = 0x9E3779B97F4A7C15
FILE_MARKS_SHIFT = 44
FILE_BLOCK_BYTES = 4096
CTL_HEADER_BYTES = LAUNCH_BYTES + FILE_MARKS + FILE_WHOLE_MARKS
MARKS_BASE = CTL_BASE + CTL_HEADER_BYTES
MARKS_BIAS = 0x7FF00000
LOW_MARKS_BYTES = 512 << 10
RT_STATE_BYTES = 8 << 20

QUIESCE_SIGNAL = 63
RESERVED_FD_FIRST = 1000
RESERVED_FD_COUNT = 24

RT_MAX_THREADS = 256
RT_MAX_FDS = 1000
RT_MAX_OFDS = 1000
RT_MAX_WRITINGS = 64
RT_PATH_BYTES = 1024
RT_MAX_VMAS = 65536
RT_AFFINITY_WORDS = 16
RT_MAX_WATCHES = 4096
RT_CONTENT_BYTES = 4 << 20
RT_PLACE_CALLERS = 6
CTL_MAX_REFUSED = 16
RT_MAX_SHARED = 32
RT_MAX_SLOTS = 64
RT_OUTPUTS = 4
ALT_STACK_BYTES = 256 << 10


class Mode(IntEnum):
    """How a process begins: with the program's first instruction, or from an arena."""

    LAUNCH = 0
    RESTORE = 1


class RtState(IntEnum):
    """`ctl.state`, written by the runtime."""

    BOOTING = 0
    WAITING = 1
    RUNNING = 2
    PARKED = 3
    PREPARED = 4
    EXITED = 5
    FAILED = 6


class Command(IntEnum):
    """`ctl.command`, written by the agent while the runtime waits (mode RESTORE)."""

    NONE = 0
    POPULATE = 1
    PREPARE = 2
    RUN = 3
    QUIT = 4
    PROTECT = 5


class OfdKind(IntEnum):
    """What an open file description of the program refers to."""

    FREE = 0
    OWN = 1
    SHARED = 2
    EXTERNAL = 3
    DEVICE = 4
    STDIN = 5
    OUTPUT = 6
    BLOCKER = 7
    PIPE = 8
    SOCKETPAIR = 9
    EVENTFD = 10
    EPOLL = 11
    TIMERFD = 12
    SIGNALFD = 13
    VIEW = 14


class Block(IntEnum):
    """`ofd.blocker`: why a kind that can be carried cannot be now."""

    NONE = 0
    UNLINKED = 1
    LOCKED = 3
    OUTSIDE = 4
    CONTENT = 5


FD_OPEN = 1

RT_PLACE = np.dtype([("nr", "<u8"), ("ip", "<u8"), ("callers", "<u8", (RT_PLACE_CALLERS,))])

CTL = np.dtype(
    [
        ("magic", "<u8"),
        ("abi_version", "<u4"),
        ("mode", "<u4"),
        ("arena_bytes", "<u8"),
        ("marks_bytes", "<u8"),
        ("fd_arena", "<i4"),
        ("fd_ctl", "<i4"),
        ("fd_event", "<i4"),
        ("fd_socket", "<i4"),
        ("fd_own_dir", "<i4"),
        ("fd_output", "<i4"),
        ("fd_stdin", "<i4"),
        ("fd_spare", "<i4"),
        ("launch_offset", "<u8"),
        ("launch_argc", "<u4"),
        ("launch_envc", "<u4"),
        ("launch_bytes", "<u4"),
        ("shared_count", "<u4"),
        ("state", "<u4"),
        ("threads", "<u4"),
        ("parked", "<u4"),
        ("exit_status", "<i4"),
        ("error", "<i4"),
        ("command_done", "<u4"),
        ("error_text", "S240"),
        ("boot_ns", "<u8"),
        ("parked_ns", "<u8"),
        ("prepared_ns", "<u8"),
        ("running_ns", "<u8"),
        ("syscalls", "<u8"),
        ("unsupported", "<u8", (8,)),
        ("refused", RT_PLACE, (CTL_MAX_REFUSED,)),
        ("refused_count", "<u4"),
        ("vma_limit_hit", "<u4"),
        ("slots_offset", "<i8"),
        ("slots", "<u4"),
        ("slots_pad", "<u4"),
        ("command_seq", "<u4"),
        ("command", "<u4"),
        ("command_arg0", "<u8"),
        ("command_arg1", "<u8"),
        ("quiesce_seq", "<u4"),
        ("resume_seq", "<u4"),
        ("released", "<u4"),
        ("running", "<u4"),
        ("passed_on", "<u4"),
        ("files_watched", "<u4"),
    ],
    align=True,
)

CTL_OFFSETS = {name: int(place[1]) for name, place in (CTL.fields or {}).items()}

RT_FD = np.dtype([("state", "<u4"), ("cloexec", "<u4"), ("ofd", "<u4"), ("pad", "<u4")], align=True)

RT_OBJECT = np.dtype(
    [
        ("peer", "<u4"),
        ("type", "<u4"),
        ("value", "<u8"),
        ("due_ns", "<i8"),
        ("interval_ns", "<i8"),
        ("content", "<u4"),
        ("content_bytes", "<u4"),
        ("messages", "<u4"),
        ("shut", "<u4"),
        ("send_bytes", "<i4"),
        ("receive_bytes", "<i4"),
        ("receive_timeout", "<i8", (2,)),
        ("send_timeout", "<i8", (2,)),
    ],
    align=True,
)

RT_WATCH = np.dtype(
    [
        ("epoll", "<u4"),
        ("target", "<u4"),
        ("fd", "<u4"),
        ("events", "<u4"),
        ("data", "<u8"),
        ("absent", "<u4"),
        ("pad", "<u4"),
    ],
    align=True,
)

RT_OFD = np.dtype(
    [
        ("kind", "<u4"),
        ("refs", "<u4"),
        ("flags", "<u4"),
        ("blocker", "<u4"),
        ("pins", "<u4"),
        ("pad", "<u4"),
        ("inode", "<u8"),
        ("offset", "<i8"),
        ("object", RT_OBJECT),
        ("made", RT_PLACE),
        ("path", f"S{RT_PATH_BYTES}"),
    ],
    align=True,
)

RT_VMA = np.dtype([("start", "<u8"), ("end", "<u8"), ("prot", "<u4"), ("kind", "<u4")], align=True)

RT_SIGACTION = np.dtype(
    [("handler", "<u8"), ("flags", "<u8"), ("mask", "<u8"), ("restorer", "<u8")], align=True
)

RT_WRITING = np.dtype(
    [
        ("used", "<u4"),
        ("pad", "<u4"),
        ("inode", "<u8"),
        ("from", "<u8"),
        ("bytes", "<u8"),
        ("spare", "<u8", (4,)),
    ],
    align=True,
)

RT_THREAD = np.dtype(
    [
        ("used", "<u4"),  # 0: free, 1: a thread, 2: one that ends
        ("vtid", "<i4"),
        ("tid", "<i4"),
        ("parked", "<u4"),
        ("frame", "<u8"),
        ("fs_base", "<u8"),
        ("gs_base", "<u8"),
        ("stack_low", "<u8"),
        ("stack_bytes", "<u8"),
        ("clear_child_tid", "<u8"),
        ("robust_list", "<u8"),
        ("robust_len", "<u8"),
        ("pending", "<u8"),
        ("handled", "<u8"),
        ("interrupted", "<u8"),
        ("cpu_offset_ns", "<i8"),
        ("affinity_bytes", "<u4"),
        ("late", "<u4"),
        ("affinity", "<u8", (RT_AFFINITY_WORDS,)),
        ("name", "S16"),
        ("stack_top", "<u8"),
        ("out_at", "<u8", (RT_OUTPUTS,)),
        ("out_bytes", "<u8", (RT_OUTPUTS,)),
        ("writing", RT_WRITING),
    ],
    align=True,
)

RT_STATE = np.dtype(
    [
        ("magic", "<u8"),
        ("abi_version", "<u4"),
        ("moves", "<u4"),
        ("arena_bytes", "<u8"),
        ("low", "<u8"),
        ("high", "<u8"),
        ("brk_start", "<u8"),
        ("brk_now", "<u8"),
        ("lock", "<u4"),
        ("stopped", "<u4"),
        ("data_start", "<u8"),
        ("data_end", "<u8"),
        ("data_copy", "<u8"),
        ("mono_offset_ns", "<i8"),
        ("parked_mono_ns", "<u8"),
        ("parked_real_ns", "<u8"),
        ("cpu_offset_ns", "<i8"),
        ("itimer", "<u8", (3, 4)),
        ("proc_pending", "<u8"),
        ("vpid", "<i4"),
        ("next_vtid", "<i4"),
        ("umask", "<u4"),
        ("thread_count", "<u4"),
        ("vma_count", "<u4"),
        ("fd_high", "<u4"),
        ("rlimit_stack", "<u8"),
        ("rlimit_spare", "<u8"),
        ("cwd", f"S{RT_PATH_BYTES}"),
        ("own_dir", f"S{RT_PATH_BYTES}"),
        ("exec_name", f"S{RT_PATH_BYTES}"),
        ("shared_off", "<u8", (RT_MAX_SHARED,)),
        ("shared_count", "<u4"),
        ("outside_writes", "<u4"),
        ("outside_path", "S256"),
        ("shared_text", "S8192"),
        ("tracker", "<u4"),
        ("tracker_pad", "<u4"),
        ("boot_slots", "<u8", (RT_MAX_SLOTS,)),
        ("sigactions", RT_SIGACTION, (65,)),
        ("threads", RT_THREAD, (RT_MAX_THREADS,)),
        ("writings", RT_WRITING, (RT_MAX_WRITINGS,)),
        ("fds", RT_FD, (RT_MAX_FDS,)),
        ("ofds", RT_OFD, (RT_MAX_OFDS,)),
        ("vmas", RT_VMA, (RT_MAX_VMAS,)),
        ("first_stack", "<u8"),
        ("hidden_count", "<u4"),
        ("ofd_high", "<u4"),
        ("watch_high", "<u4"),
        ("content_used", "<u4"),
        ("watches", RT_WATCH, (RT_MAX_WATCHES,)),
        ("content", "u1", (RT_CONTENT_BYTES,)),
    ],
    align=True,
)

# C's names of the structures above, for the test that compares them with the header.
STRUCTS = {
    "ctl": CTL,
    "rt_fd": RT_FD,
    "rt_place": RT_PLACE,
    "rt_object": RT_OBJECT,
    "rt_watch": RT_WATCH,
    "rt_ofd": RT_OFD,
    "rt_vma": RT_VMA,
    "rt_sigaction": RT_SIGACTION,
    "rt_writing": RT_WRITING,
    "rt_thread": RT_THREAD,
    "rt_state": RT_STATE,
}


def text(field: bytes) -> str:
    """A C string out of a fixed-size field (what follows its NUL is stale)."""
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")
