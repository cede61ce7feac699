"""Settings: defaults, files, overrides, and mistakes that are named."""

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from optmigd.config import default_paths, find_socket, load_settings
from optmigd.protocol.errors import ConfigError


@pytest.fixture(autouse=True)
def ordinary_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be an ordinary user whose directories are all below a temporary one."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "OPTMIGD_SOCKET"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def write(directory: Path, text: str) -> Path:
    file = directory / "optmigd.toml"
    file.write_text(text)
    return file


def test_defaults_need_no_file(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.host.name
    assert settings.limits.max_image_bytes == 256 << 20
    assert settings.migration.downtime_limit_ms == 30.0
    assert settings.migration.streams == 2
    assert settings.migration.on_stall == "throttle"
    assert settings.migration.timeout_s == 0.0
    assert settings.platform.name == "sim"
    assert settings.platform.sim_root_key is None
    assert settings.enclave_user == ""
    assert settings.peers == ()
    state_dir = tmp_path / ".local/state/optmigd"
    assert settings.paths.state_dir == state_dir
    assert settings.paths.socket == state_dir / "control.sock"
    assert settings.paths.host_key == state_dir / "host.key"


def test_a_file_wins_over_the_defaults_and_an_override_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[host]\nname = "a"\nlisten = "127.0.0.1:1"\n')
    settings = load_settings(file, {"host.listen": "127.0.0.1:0", "host.advertise": None})
    assert settings.host.name == "a"
    assert settings.host.listen == "127.0.0.1:0"
    assert settings.host.advertise == ""


def test_the_xdg_directories_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    paths = default_paths()
    assert paths.config_file == tmp_path / "c/optmigd/optmigd.toml"
    assert paths.state_dir == tmp_path / "s/optmigd"
    assert paths.socket == tmp_path / "r/optmigd.sock"


def test_a_relative_xdg_directory_counts_as_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_paths().state_dir == tmp_path / ".local/state/optmigd"


def test_root_has_the_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    paths = default_paths()
    assert str(paths.config_file) == "/etc/optmigd/optmigd.toml"
    assert str(paths.state_dir) == "/var/lib/optmigd"
    assert str(paths.socket) == "/run/optmigd.sock"


def test_relative_paths_in_a_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = write(tmp_path, '[paths]\nstate_dir = "state"\nhost_key = "../key"\n')
    settings = load_settings(file, {"paths.socket": "s"})
    assert settings.paths.state_dir == tmp_path / "state"
    assert settings.paths.host_key == tmp_path.parent / "key"
    assert settings.paths.socket == elsewhere / "s"


def test_the_host_key_is_beside_the_configuration(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "")).paths.host_key == tmp_path / "host.key"


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("[limits]\nmax_enclave = 3\n", "limits.max_enclave", "max_enclaves"),
        ("[limit]\n", "limit", "limits"),
        ("colour = 1\n", "colour", "enclave_user"),
        ("[limits]\nmax_enclaves = 0\n", "limits.max_enclaves", ">= 1"),
        ('[limits]\nmax_enclaves = "3"\n', "limits.max_enclaves", "`int`, got `str`"),
        ('host = "a"\n', "host", "`object`, got `str`"),
        ("[paths]\nsocket = 3\n", "paths.socket", "`str`"),
        ('[migration]\non_stall = "hope"\n', "migration.on_stall", "hope"),
        ("[migration]\ndowntime_limit_ms = -1\n", "migration.downtime_limit_ms", "> 0"),
        ('[platform]\nname = "sgx"\n', "platform.name", "sgx"),
        ('[host]\nname = "a b"\n', "host.name", "1 to 63 letters"),
        ('[[peers]]\nname = "b b"\naddress = "b:1"\nkey = ""\n', "peers.name", "1 to 63"),
        ('[host]\nlisten = "7411"\n', "host.listen", "ADDR:PORT"),
        ('[host]\nadvertise = "a:0"\n', "host.advertise", "ADDR:PORT"),
        ('[[peers]]\nname = "b"\naddress = "b:1"\n', "peers", "key"),
        ('[[peers]]\nname = "b"\naddress = "b"\nkey = ""\n', "peers.address", "ADDR:PORT"),
        ('[[peers]]\nname = "b"\naddress = "b:1"\nkey = "x"\n', "peers.key", "44"),
        ('[[peers]]\nname = "b"\nport = 1\n', "peers.port", "address"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, key: str, found: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_settings(file)
    assert refused.value.fields == {"file": str(file), "key": key}
    assert refused.value.message.startswith(f"{file}: {key}: ")
    assert found in refused.value.message


def test_a_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[host]\nlisten = "127.0.0.1:0"\n')
    with pytest.raises(ConfigError) as refused:
        load_settings(file, {"host.listen": "nowhere"})
    assert refused.value.fields["key"] == "host.listen"
    assert str(file) not in refused.value.message


def test_a_socket_path_that_the_kernel_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        load_settings(None, {"paths.socket": "/" + "x" * 107})
    assert load_settings(None, {"paths.socket": "/" + "x" * 106})


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"[host\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_what_is_not_toml_is_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "optmigd.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="expected TOML"):
        load_settings(file)


def test_the_example_is_valid(tmp_path: Path) -> None:
    text = resources.files("optmigd.config").joinpath("example.toml").read_text("utf-8")
    settings = load_settings(write(tmp_path, text))
    assert settings.host.name == "rack1-a"
    assert [peer.name for peer in settings.peers] == ["rack1-b"]


def test_every_setting_has_its_default_in_default_toml() -> None:
    text = resources.files("optmigd.config").joinpath("default.toml").read_text("utf-8")
    tree: dict[str, Any] = tomllib.loads(text)
    settings = load_settings()
    assert set(tree) == set(settings.__struct_fields__) - {"peers"}
    for name, table in tree.items():
        if isinstance(table, dict):
            assert set(table) == set(getattr(settings, name).__struct_fields__), name


def test_the_socket_is_found_by_environment_then_configuration_then_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_socket() == tmp_path / ".local/state/optmigd/control.sock"
    directory = tmp_path / ".config/optmigd"
    directory.mkdir(parents=True)
    write(directory, '[paths]\nstate_dir = "/srv/x"\n')
    assert find_socket() == Path("/srv/x/control.sock")
    monkeypatch.setenv("OPTMIGD_SOCKET", "/run/y.sock")
    assert find_socket() == Path("/run/y.sock")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(AttributeError):
        settings.limits.max_enclaves = 1  # type: ignore[misc]
