"""No root: daemons, enclaves, tracking and migration work for a user without any capability.

The same under the filter of system calls of the systemd unit, which is all of the unit that can be
tried where systemd does not run.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optmigd.bench.hosts import two_hosts
from tests.config.test_unit_file import calls_of, denied_groups
from tests.conftest import BuildProgram
from tests.support import sandbox
from tests.support.busy import FILE, UPDATES
from tests.support.journeys import Journey, native_run

# A user namespace in which this user is number 1000: nothing of root's power is left in it.
AS_ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")


def ordinary_user() -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    if shutil.which("unshare") is None:
        pytest.skip("run as root, and unshare is not installed to get rid of that")
    done = subprocess.run(
        [*AS_ORDINARY_USER, "grep", "CapEff", "/proc/self/status"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"run as root, and no user namespace can be made: {done.stderr.strip()}")
    assert done.stdout.split()[1] == "0" * 16
    return AS_ORDINARY_USER


def filtered() -> tuple[str, ...]:
    if shutil.which("systemd-analyze") is None or sandbox.find_library() is None:
        pytest.skip("systemd-analyze or libseccomp is absent")
    calls = sorted(set().union(*map(calls_of, denied_groups())))
    prefix = (*ordinary_user(), sys.executable, sandbox.__file__, ",".join(calls))
    # It does filter: anybody may ask to be traced, but for @debug.
    traced = "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"
    seen = subprocess.run(
        [*prefix, sys.executable, "-c", traced], capture_output=True, text=True, check=True
    )
    assert seen.stdout.strip() == "-1"
    return prefix


@pytest.mark.parametrize("sandboxed", [False, True])
def test_a_user_without_capabilities_can_do_it_all(
    sandboxed: bool, program: BuildProgram, tmp_path: Path
) -> None:
    prefix = filtered() if sandboxed else ordinary_user()
    built = program("integers")
    args = [UPDATES, "32"]
    expected = native_run(built, args, tmp_path / "native")
    with two_hosts(prefix=prefix) as (alpha, beta, _):
        journey = Journey((alpha, beta), "plain", seed=1)
        launched = alpha.client.launch(
            built.image, enclave="plain", memory_bytes=256 << 20, args=[*args, FILE]
        )
        assert launched["tracker"] == "kernel"
        for _ in range(2):
            journey.move(verify=True)
        journey.let_finish()
        assert journey.finish() == expected
