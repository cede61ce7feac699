"""Runs a command under a filter of system calls, as the systemd unit asks for one.

Usage: python sandbox.py CALL,CALL,... COMMAND...

The calls fail with EPERM, as with `SystemCallErrorNumber=EPERM`; calls of another architecture
kill, and only UNIX and IP sockets can be made. libseccomp installs the filter, as for systemd.
"""

import ctypes
import ctypes.util
import errno
import os
import socket
import sys

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
FAMILIES = 46
_EQUAL = 4
_UNKNOWN = -1  # a call that this machine does not have


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def find_library() -> str | None:
    """The name of libseccomp, None if it is not there."""
    return ctypes.util.find_library("seccomp")


def install(denied: list[str]) -> None:
    """Filter this process and all that it starts."""
    library = ctypes.CDLL(find_library())
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    assert context
    for name in denied:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != _UNKNOWN:
            action = ctypes.c_uint32(ERRNO | errno.EPERM)
            assert library.seccomp_rule_add_array(context, action, number, 0, None) == 0, name
    number = library.seccomp_syscall_resolve_name(b"socket")
    # A rule compares an argument once: so every other family is named.
    for family in set(range(FAMILIES)) - {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6}:
        compare = ctypes.byref(_Compare(0, _EQUAL, family, 0))
        action = ctypes.c_uint32(ERRNO | errno.EAFNOSUPPORT)
        assert library.seccomp_rule_add_array(context, action, number, 1, compare) == 0
    assert library.seccomp_load(context) == 0


if __name__ == "__main__":
    install(sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
