"""Why an enclave cannot be moved right now, in words that both hosts and people share.

A preflight gathers *all* blockers, so that an operator mends them in one go. The codes are stable:
programs compare them, people read the message.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BLOCKER_CODES: Mapping[str, str] = {
    "already-migrating": "another migration of this enclave is in progress",
    "busy": "the destination already receives as many enclaves as it may",
    "cipher": "the two shims have no bulk cipher in common",
    "cpu-features": "the destination's CPU lacks instructions that the source's program may use",
    "debug": "the peer runs with debugging on, and the owner's policy forbids it",
    "device": "the program holds a device",
    "directory-open": "the program is in the middle of listing a directory",
    "disk-space": "the destination's disk is too small for the enclave's own directory",
    "enclave-exists": "the destination already has an enclave of this name",
    "enclaves": "the destination has as many enclaves as it may",
    "file-absent": "a file that the program uses is absent on the destination",
    "file-deleted": "the program holds a file that has been deleted",
    "file-different": "a file that the program uses has other content on the destination",
    "file-locked": "the program holds a lock on a file",
    "file-writable": "the program writes a file outside its own directory and shared storage",
    "image-absent": "the destination does not have the image",
    "image-corrupt": "the image that arrived is not the image that was offered",
    "image-size": "the image is larger than the destination takes",
    "kernel": "the destination's kernel lacks something the runtime needs",
    "measurement": "the two images have different measurements",
    "memory": "the destination has too little free memory",
    "page-size": "the two hosts have different page sizes",
    "pipe": "the program holds a pipe to another process",
    "platform": "the owner's policy does not accept the peer's platform",
    "policy": "the owner's policy refuses this move",
    "process": "the program has child processes",
    "shared-absent": "shared storage is not mounted on the destination",
    "socket": "the program holds a socket",
    "special-file": "the enclave's own directory holds something that cannot travel",
    "streams": "the destination does not accept this number of data streams",
    "system-call": "the program is inside a system call that cannot be carried across",
    "thread": "the program has threads that this runtime cannot carry across",
    "tracker": "no dirty-page tracker works on this host",
    "version": "the two sides have no protocol version in common",
    "xsave": "the destination's CPU saves other register state than the source's",
}


@dataclass(frozen=True)
class Blocker:
    """One reason against a move.

    Args:
        code: one of `BLOCKER_CODES`; a newer peer may name one that is not listed here.
        subject: what stands in the way: a path, a feature, a size.
        message: what was expected, what was found, and what to do next.
    """

    code: str
    subject: str
    message: str

    def as_fields(self) -> dict[str, str]:
        """Return the wire form."""
        return {"code": self.code, "subject": self.subject, "message": self.message}


def blockers_from_fields(value: object) -> list[Blocker]:
    """Read blockers from their wire form; what is no blocker is left out.

    It serves error reports that arrived from elsewhere: a broken report must not hide the error.
    """
    if not isinstance(value, list | tuple):
        return []
    found = []
    for item in value:
        if isinstance(item, Blocker):
            found.append(item)
        elif isinstance(item, Mapping):
            code, subject, message = (item.get(key) for key in ("code", "subject", "message"))
            if isinstance(code, str) and isinstance(subject, str) and isinstance(message, str):
                found.append(Blocker(code, subject, message))
    return found
