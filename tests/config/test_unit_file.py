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
