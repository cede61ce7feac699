"""No root: daemons, enclaves, tracking and migration work for a user without any capability."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from optmigd.bench.hosts import two_hosts
from tests.conftest import BuildProgram
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


def test_a_user_without_capabilities_can_do_it_all(program: BuildProgram, tmp_path: Path) -> None:
    prefix = ordinary_user()
    args = ["200000000", "32"]
    built = program("integers")
    expected = native_run(built, args, tmp_path / "native")
    with two_hosts(prefix=prefix) as (alpha, beta, _):
        journey = Journey((alpha, beta), "plain", seed=1)
        launched = alpha.client.launch(
            built.image, enclave="plain", memory_bytes=256 << 20, args=args
        )
        assert launched["tracker"] == "kernel"
        for _ in range(2):
            journey.move(verify=True)
        assert journey.finish() == expected
