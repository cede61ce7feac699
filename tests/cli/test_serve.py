"""`optmigd serve`: configuration, options, signals and errors; with the daemon played by a test."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import structlog
import trio

import optmigd
from optmigd.blocking import BlockingClient
from optmigd.cli.invocation import run
from optmigd.cli.serve import daemon
from optmigd.config import HostIdentity, Settings, load_settings
from optmigd.conversation import DaemonUnreachable
from optmigd.protocol.errors import ConfigError, OptmigError


class Daemon:
    """Takes the place of `optmigd.serve`; `then` runs once it has started."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []
        self.stopped = False
        self.then: Callable[[], Awaitable[None]] = self.ask_to_stop
        self.signal = signal.SIGTERM

    async def ask_to_stop(self) -> None:
        os.kill(os.getpid(), self.signal)

    async def serve(self, settings: Settings, *, task_status: trio.TaskStatus[None]) -> None:
        self.settings.append(settings)
        task_status.started()
        try:
            await self.then()
            await trio.sleep_forever()
        finally:
            self.stopped = True


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Daemon]:
    played = Daemon()
    monkeypatch.setattr(optmigd, "serve", played.serve, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    yield played
    structlog.reset_defaults()


def test_without_a_configuration_it_makes_one_and_says_where(
    played: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(daemon, "optmigd", ["serve", "--name", "a", "--listen", "127.0.0.1:0"]) == 0
    file = tmp_path / ".config/optmigd/optmigd.toml"
    key = HostIdentity.load(file.parent / "host.key")
    err = capfd.readouterr().err
    assert f"there was no configuration; {file} is new, for a host called a" in err
    assert key.fingerprint in err
    assert key.private.hex() not in err
    assert played.stopped
    assert played.settings == [load_settings(file)]
    assert played.settings[0].host.listen == "127.0.0.1:0"
    # The second start finds it and says nothing of it.
    assert run(daemon, "optmigd", ["serve"]) == 0
    assert "there was no configuration" not in capfd.readouterr().err
    assert played.settings[1] == played.settings[0]


def test_a_made_configuration_keeps_every_option(played: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "etc" / "a.toml"
    arguments = ["serve", "--config", str(file), "--name", "a", "--listen", "127.0.0.1:0"]
    arguments += ["--socket", str(tmp_path / "s"), "--state-dir", str(tmp_path / "state")]
    assert run(daemon, "optmigd", arguments) == 0
    settings = load_settings(file)
    assert settings.paths.socket == tmp_path / "s"
    assert settings.paths.state_dir == tmp_path / "state"
    assert settings.paths.host_key == tmp_path / "etc" / "host.key"
    assert played.settings == [settings]


def test_options_win_over_a_file_without_changing_it(played: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[host]\nname = "a"\nlisten = "127.0.0.1:1"\n')
    assert run(daemon, "optmigd", ["serve", "--config", str(file), "--name", "b"]) == 0
    assert played.settings[0].host.name == "b"
    assert played.settings[0].host.listen == "127.0.0.1:1"
    assert file.read_text() == '[host]\nname = "a"\nlisten = "127.0.0.1:1"\n'


def test_it_stops_at_ctrl_c_and_logs_as_the_configuration_says(
    played: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    played.signal = signal.SIGINT
    file = tmp_path / "a.toml"
    file.write_text('[host]\nname = "a"\n[log]\nformat = "json"\n')
    assert run(daemon, "optmigd", ["serve", "--config", str(file)]) == 0
    event = json.loads(capfd.readouterr().err)
    assert event["event"] == "daemon_stopping"
    assert event["signal"] == "SIGINT"


def test_a_wrong_configuration_is_a_usage_error(
    played: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[limits]\nmax_enclave = 1\n")
    assert run(daemon, "optmigd", ["serve", "--config", str(file)]) == 2
    assert f"{file}: limits.max_enclave: table [limits] has no such key" in capfd.readouterr().err
    assert run(daemon, "optmigd", ["serve", "--config", str(tmp_path / "n"), "--listen", "x"]) == 2
    assert not (tmp_path / "n").exists()
    assert played.settings == []


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("another daemon listens"), 2), (OptmigError("odd"), 1)]
)
def test_an_error_of_the_daemon_is_a_message_not_a_traceback(
    played: Daemon, capfd: pytest.CaptureFixture[str], error: OptmigError, code: int
) -> None:
    async def fail() -> None:
        raise error

    played.then = fail
    assert run(daemon, "optmigd", ["serve"]) == code
    err = capfd.readouterr().err
    assert f"optmigd: {error.message}" in err
    assert "Traceback" not in err


def test_a_bug_of_the_daemon_is_a_traceback(
    played: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    played.then = fail
    assert run(daemon, "optmigd", ["serve"]) == 1
    err = capfd.readouterr().err
    assert "ZeroDivisionError" in err
    assert "this is a bug in optmigd" in err


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(daemon, "optmigd", ["--version"]) == 0
    assert capfd.readouterr().out == f"optmigd, version {optmigd.__version__}\n"


def test_the_real_daemon_starts_answers_and_stops(tmp_path: Path) -> None:
    socket = tmp_path / "control.sock"
    options = ["--config", str(tmp_path / "optmigd.toml"), "--name", "a"]
    options += ["--listen", "127.0.0.1:0", "--socket", str(socket)]
    options += ["--state-dir", str(tmp_path / "state")]
    command = [sys.executable, "-m", "optmigd.cli.serve", "serve", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "daemon_started" not in (line := process.stderr.readline()):
                assert line, "the daemon ended before it had started"
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600
            client = BlockingClient(socket)
            assert client.ping()["name"] == "a"
            identity = client.host_identity()
            assert identity["key"] == HostIdentity.load(tmp_path / "host.key").key_text
            assert not identity["listen"].endswith(":0")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    with pytest.raises(DaemonUnreachable):
        client.ping()
