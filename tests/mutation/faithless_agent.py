"""A shim agent that breaks its word in one way, so that a test sees who notices.

Usage: python -m tests.mutation.faithless_agent HOW, and the arguments of the shim agent.
"""

import sys

from optmigd.enclave_shim.__main__ import main
from optmigd.enclave_shim.migration import destination
from optmigd.enclave_shim.process import Process


def resume_after_release(process: Process) -> None:
    """Release the instance and wake its threads all the same."""
    process.ctl["released"] = 1
    process.ctl["resume_seq"] = process.ctl["quiesce_seq"]
    process.ctl.wake("resume_seq")


def another_digest(*_: object) -> bytes:
    """Say that another state has arrived than was sent."""
    return b"x" * 32


def break_word(how: str) -> None:
    """Replace one function of the agent; the keeper hands it on to the agent that it forks."""
    if how == "resumes":
        setattr(Process, "release", resume_after_release)  # noqa: B010
    elif how == "lies":
        setattr(destination, "state_digest", another_digest)  # noqa: B010
    else:
        raise SystemExit(f"no way {how!r} to break its word")


if __name__ == "__main__":
    break_word(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
