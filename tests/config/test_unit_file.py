"""The systemd unit: it must start the daemon as its command line is, and let enclaves live on."""

import shlex
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from optmigd.cli.serve import serve

UNIT = resources.files("optmigd.config").joinpath("optmigd.service").read_text("utf-8")


def settings() -> dict[str, str]:
    pairs = (line.split("=", 1) for line in UNIT.splitlines() if not line.startswith("#"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_it_starts_the_daemon_with_options_that_exist() -> None:
    program, command, *options = shlex.split(settings()["ExecStart"])
    assert program.endswith("/optmigd")
    assert command == "serve"
    context = serve.make_context("serve", options)
    assert context.params["config"] == Path("/var/lib/optmigd/config/optmigd.toml")
    assert context.params["state_dir"] == Path("/var/lib/optmigd")
    assert context.params["socket"] == Path("/run/optmigd/control.sock")


def test_enclaves_outlive_the_daemon() -> None:
    assert settings()["KillMode"] == "process"


def test_it_is_hardened() -> None:
    assert (
        settings().items()
        >= {
            "UMask": "0077",
            "StateDirectoryMode": "0700",
            "NoNewPrivileges": "yes",
            "CapabilityBoundingSet": "",
            "AmbientCapabilities": "",
            "RestrictSUIDSGID": "yes",
            "ProtectSystem": "strict",
            "ProtectHome": "read-only",
            "PrivateTmp": "yes",
            "PrivateDevices": "yes",
            "ProtectProc": "invisible",
            "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
            "RestrictNamespaces": "yes",
            "SystemCallArchitectures": "native",
            "LimitCORE": "0",
            "OOMPolicy": "continue",
        }.items()
    )


NEEDED_CALLS = {
    *("userfaultfd", "ioctl", "pread64", "memfd_create", "fallocate", "madvise", "process_madvise"),
    *("prctl", "rt_sigaction", "rt_sigreturn", "sigaltstack", "futex", "tgkill", "arch_prctl"),
    *("clone", "execve", "pidfd_open", "pidfd_send_signal", "sendmsg", "recvmsg", "eventfd2"),
    *("mmap", "mremap", "munmap", "mprotect", "openat", "openat2", "fchmod", "flock", "setsockopt"),
}
"""What tracking, quiescing and moving are made of."""


def denied_groups() -> list[str]:
    """The groups of system calls that the unit takes away."""
    denied = settings()["SystemCallFilter"]
    assert denied.startswith("~")
    return denied.removeprefix("~").split()


def calls_of(group: str) -> set[str]:
    """The system calls of a group, as systemd knows them."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    words = [line.split("#")[0].strip() for line in done.stdout.splitlines()]
    inner = [calls_of(word) for word in words if word.startswith("@") and word != group]
    return {word for word in words if word and not word.startswith("@")}.union(*inner)


def test_the_filter_takes_away_only_groups_that_nobody_needs() -> None:
    assert {"@module", "@mount", "@raw-io", "@reboot", "@swap", "@debug"} <= set(denied_groups())
    assert "@system-service" not in denied_groups()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is absent")
@pytest.mark.parametrize("group", denied_groups())
def test_no_call_that_enclaves_need_is_in_a_denied_group(group: str) -> None:
    calls = calls_of(group)
    assert len(calls) >= 2
    assert calls & NEEDED_CALLS == set()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is absent")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = tmp_path / "optmigd.service"
    unit.write_text(UNIT.replace("/usr/local/bin/optmigd", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if str(unit) in line]
    assert ours == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is absent")
def test_systemd_finds_it_hardly_exposed(tmp_path: Path) -> None:
    """On systemd's scale from 0 to 10; what is left is the network, which a daemon needs."""
    unit = tmp_path / "optmigd.service"
    unit.write_text(UNIT)
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at a unit that is not loaded")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
