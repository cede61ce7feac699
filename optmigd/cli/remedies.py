"""What a person can do about each refusal.

Messages say what was expected and found in this case; what helps against a kind of refusal is the
same every time, and stands here. docs/operating.md explains the same codes at more length.
"""

from collections.abc import Mapping

from optmigd.protocol.blockers import blockers_from_fields

BLOCKER_REMEDIES: Mapping[str, str] = {
    "already-migrating": "wait for it (`optmigctl watch ID`) or end it (`optmigctl cancel ID`)",
    "busy": "`migrate` waits for it by itself; `check` says so at this moment",
    "cipher": "bring both hosts to the same version of optmigd",
    "cpu-features": "choose a host whose CPU has them, or build for an older CPU (-march)",
    "debug": "switch debugging off on the peer; a policy that allows it needs a new launch",
    "device": "let the program close the device before it moves",
    "directory-open": "try again when the program has read the directory to its end",
    "disk-space": "make room for the state directory on the destination, or choose another host",
    "enclave-exists": "choose another host, or stop the other enclave of this name there",
    "enclaves": "raise max_enclaves in the destination's configuration, or choose another host",
    "file-absent": "copy the file to the same path on the destination, put it into the enclave's "
    "own directory (launch --dir), or declare the storage as shared (launch --shared)",
    "file-different": "make both copies of the file equal, or put it into the enclave's own "
    "directory (launch --dir)",
    "file-deleted": "let the program close the file; only files that have a path can be opened "
    "again",
    "file-locked": "let the program release the lock before it moves",
    "file-writable": "write into the enclave's own directory (launch --dir) or into shared storage "
    "(launch --shared)",
    "image-absent": "copy the image to the destination",
    "image-corrupt": "try again; if it happens twice, find what changes bytes between the hosts",
    "image-size": "raise max_image_bytes in the destination's configuration",
    "kernel": "choose a host with a newer kernel (6.7 or later)",
    "measurement": "use the same image on both hosts; another one cannot continue this computation",
    "memory": "free memory on the destination, raise max_memory_bytes there, or go elsewhere",
    "page-size": "choose a host with the same page size",
    "pipe": "let the program close the pipe before it moves",
    "platform": "choose a host with a platform that the policy accepts",
    "policy": "choose a host that the owner's policy accepts; a new policy needs a new launch",
    "process": "wait until its child processes have ended",
    "shared-absent": "mount the storage at the same path on the destination",
    "socket": "let the program close the socket before it moves",
    "special-file": "remove sockets, pipes and devices from the enclave's own directory",
    "streams": "ask for fewer with --streams",
    "system-call": "try again when the program has left the system call",
    "thread": "run the program with one thread, or try again when the thread has ended",
    "tracker": "choose a host with Linux 6.7 or later; or use --mode stop-and-copy",
    "version": "bring both hosts to the same version of optmigd",
    "xsave": "choose a host whose CPU saves the same registers",
}

# Errors whose messages always say it themselves are not repeated here.
ERROR_REMEDIES: Mapping[str, str] = {
    "tracker-unavailable": "run on Linux 6.7 or later",
    "host-unreachable": "see whether optmigd runs there, whether the address in `optmigctl host "
    "peers` is right, and whether a firewall lies between",
    "host-key-mismatch": "compare with `optmigctl host identity` on that host; if its key has "
    "really changed, `optmigctl host add` pins the new one",
    "version-mismatch": "bring both hosts to the same version of optmigd",
    "handshake-failed": "see that each of the two hosts has pinned the other's key (`optmigctl "
    "host peers` on both)",
    "attestation-failed": "choose a host that the owner's policy accepts, or correct the policy "
    "and launch anew",
    "already-migrating": "wait for it (`optmigctl watch ID`) or end it (`optmigctl cancel ID`)",
    "not-converging": "use --on-stall throttle or --on-stall switch, raise --downtime-limit or "
    "--max-bandwidth",
    "timeout": "raise --timeout, --downtime-limit or --max-bandwidth; the enclave runs on where it "
    "was",
    "failed": "the enclave runs on where it was; the daemons' logs on both hosts say more",
    "journal": "make room on the disk of the state directory, or see what is wrong with it",
    "channel-closed": "the enclave runs on where it was; see the network between the hosts, and "
    "the daemons' logs",
    "uncertain": "do not start the enclave elsewhere: the hand-off is repeated until the "
    "destination confirms it. Get that host back; `optmigctl status ID` shows when it is settled",
    "released": "the hand-off can only be completed; `optmigctl watch ID` shows it, `optmigctl "
    "recover ID` what can be done if the other host is gone",
    "unconfirmed": "read what it means; if that is what you want, give --yes as well",
}


def remedy(code: str) -> str:
    """Return what to do about an error; empty if its message has to be enough."""
    return ERROR_REMEDIES.get(code, "")


def blocker_lines(blockers: object) -> list[str]:
    """Write blockers, one a line: code, subject, message and what to do."""
    lines = []
    for blocker in blockers_from_fields(blockers):
        advice = BLOCKER_REMEDIES.get(blocker.code)
        line = f"{blocker.code}: {blocker.subject}: {blocker.message}"
        lines.append(f"{line} (what to do: {advice})" if advice else line)
    return lines
