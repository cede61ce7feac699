"""What an operator can set, and how a mistake in it is reported.

The default of every setting stands in `default.toml`; a configuration file and the command line
are laid over it in that order. The result is one frozen, fully resolved `Settings`: no reader of
it needs to know where a value came from. A key nobody knows is refused, because a misspelt limit
that silently does not apply is worse than a daemon that does not start.
"""

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from optmigd.config.addresses import check_name, parse_address, parse_key
from optmigd.config.paths import default_paths
from optmigd.protocol.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a UNIX socket. Source: sizeof(sun_path) - 1, unix(7)."""

_Where = Callable[[str], str]
"""Says where the value of a dotted key came from, for messages."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class HostSettings(_Section, frozen=True):
    """Who this host is and where peers reach it; `advertise` is empty for the listening address."""

    name: str
    listen: str
    advertise: str


class PathSettings(_Section, frozen=True):
    """Absolute paths, after loading."""

    state_dir: Path
    socket: Path
    host_key: Path


class LimitSettings(_Section, frozen=True):
    """Bounds on what enclaves, migrations and strangers may take.

    `max_memory_bytes` 0: what there is; `max_bandwidth`, in bytes per second, 0: no limit.
    """

    max_enclaves: Count
    max_memory_bytes: Amount
    max_outgoing: Count
    max_incoming: Count
    max_bandwidth: Amount
    max_image_bytes: Count
    max_half_open: Count
    handshake_timeout_s: Seconds
    link_idle_timeout_s: Seconds
    stream_idle_timeout_s: Seconds


class MigrationSettings(_Section, frozen=True):
    """What a migration uses when its request does not say otherwise; `timeout_s` 0: no limit.

    `congestion_control`: of the data streams; empty for the system's.
    """

    downtime_limit_ms: Annotated[float, msgspec.Meta(gt=0)]
    streams: Annotated[int, msgspec.Meta(ge=1, le=64)]
    on_stall: Literal["throttle", "switch", "abort"]
    timeout_s: Annotated[float, msgspec.Meta(ge=0)]
    switchover_stall_s: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    congestion_control: Annotated[str, msgspec.Meta(max_length=15)]


class PlatformSettings(_Section, frozen=True):
    """Where evidence comes from; `sim_root_key` is None for the built-in development root."""

    name: Literal["sim"]
    sim_root_key: Path | None


class LogSettings(_Section, frozen=True):
    """How much is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "console", "json"]


class PeerSettings(_Section, frozen=True):
    """A peer that the configuration file pins: name, ADDR:PORT, key in base64."""

    name: str
    address: str
    key: str


class Settings(_Section, frozen=True):
    """Everything a daemon needs to know before it starts. Made by `load_settings`."""

    host: HostSettings
    paths: PathSettings
    limits: LimitSettings
    migration: MigrationSettings
    platform: PlatformSettings
    log: LogSettings
    enclave_user: str
    peers: tuple[PeerSettings, ...] = ()


def load_settings(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """Read a configuration file, lay it over the defaults and resolve every path.

    Reads only: makes no file and no directory.

    Args:
        path: the configuration file; None for defaults and `overrides` alone.
        overrides: values that win over the file, by dotted key, such as
            ``{"host.listen": "127.0.0.1:0", "paths.state_dir": "/srv/optmigd"}``. A value of None
            is the same as no entry.

    Raises:
        ConfigError: the file is absent, unreadable or not TOML, or a key is unknown or has a value
            that cannot be; fields `file` and `key` say where.
    """
    file = None if path is None else Path(path).expanduser().absolute()
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    tree = _defaults()
    if file is not None:
        _lay_over(tree, _read(file))
    for dotted, value in given.items():
        _set(tree, dotted, value)

    def where(key: str) -> str:
        from_file = file is not None and key not in given
        return str(file) if from_file else "command line or overrides"

    settings = _convert(_resolved(tree, file, where), where)
    _check_text(settings, where)
    return settings


def find_socket() -> Path:
    """Return the control socket of this user's daemon.

    In this order: ``$OPTMIGD_SOCKET``, what the default configuration file says, the default.

    Raises:
        ConfigError: the default configuration file exists, can be read, and is wrong.
    """
    named = os.environ.get("OPTMIGD_SOCKET", "")
    if named:
        return Path(named)
    config_file = default_paths().config_file
    readable = os.access(config_file, os.R_OK)
    return load_settings(config_file if readable else None).paths.socket


def _defaults() -> dict[str, Any]:
    text = resources.files("optmigd.config").joinpath("default.toml").read_text("utf-8")
    return tomllib.loads(text)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{file}: the configuration cannot be read: {error.strerror}. `optmigd serve --config "
            f"{file}` makes one where there is none",
            file=str(file),
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected TOML: {error}", file=str(file)) from error


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def _set(tree: dict[str, Any], dotted: str, value: object) -> None:
    *tables, key = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
    tree[key] = os.fspath(value) if isinstance(value, os.PathLike) else value


def _resolved(tree: dict[str, Any], file: Path | None, where: _Where) -> dict[str, Any]:
    """Fill in what depends on the machine and make paths absolute.

    Relative paths in a file are relative to that file, those of overrides to the current directory.
    Values of a wrong type are left for `_convert` to report.
    """
    for section in ("host", "paths", "platform"):
        if not isinstance(tree[section], dict):
            return tree
    host, paths, platform = tree["host"], tree["paths"], tree["platform"]
    if host["name"] == "":
        host["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:63]

    def absolute(key: str, value: object) -> object:
        if not isinstance(value, str) or value == "":
            return value
        from_file = file is not None and where(key) == str(file)
        base = file.parent if file is not None and from_file else Path.cwd()
        return os.path.normpath(base / Path(value).expanduser())

    for key in ("state_dir", "socket", "host_key"):
        paths[key] = absolute(f"paths.{key}", paths[key])
    platform["sim_root_key"] = absolute("platform.sim_root_key", platform["sim_root_key"]) or None

    if isinstance(paths["state_dir"], str):
        state_dir = Path(paths["state_dir"]) if paths["state_dir"] else None
        defaults = default_paths(state_dir)
        key_dir = defaults.state_dir if file is None else file.parent
        paths["state_dir"] = str(defaults.state_dir)
        if paths["socket"] == "":
            paths["socket"] = str(defaults.socket)
        if paths["host_key"] == "":
            paths["host_key"] = str(key_dir / "host.key")
    return tree


def _convert(tree: dict[str, Any], where: _Where) -> Settings:
    def decode_path(type_: type, value: object) -> object:
        if not isinstance(value, str):
            raise TypeError(f"expected `str`, got `{type(value).__name__}`")
        return Path(value)

    try:
        return msgspec.convert(tree, Settings, dec_hook=decode_path)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        key = re.sub(r"\[.*?\]", "", at.rstrip("`").lstrip("."))
        unknown = re.search(r"unknown field `(.*)`", what)
        if unknown:
            table = f"table [{key}]" if key else "the top level"
            key = f"{key}.{unknown[1]}".lstrip(".")
            known = ", ".join(sorted(_known_keys(key.rpartition(".")[0])))
            what = f"{table} has no such key; it has {known}"
        raise ConfigError(
            f"{where(key)}: {key}: {what[:1].lower()}{what[1:]}", file=where(key), key=key
        ) from error


def _known_keys(table: str) -> tuple[str, ...]:
    """The keys of a table of the configuration, "" for the top level."""
    if table == "peers":
        return PeerSettings.__struct_fields__
    if table == "":
        return Settings.__struct_fields__
    return tuple(_defaults()[table])


def _check_text(settings: Settings, where: _Where) -> None:
    """Check the texts whose form a type cannot say."""

    def check(key: str, parse: Callable[[str], object], text: str) -> None:
        try:
            parse(text)
        except ConfigError as error:
            raise ConfigError(
                f"{where(key)}: {key}: {error.message}", file=where(key), key=key
            ) from error

    check("host.name", check_name, settings.host.name)
    check("host.listen", partial(parse_address, allow_port_zero=True), settings.host.listen)
    if settings.host.advertise:
        check("host.advertise", parse_address, settings.host.advertise)
    for peer in settings.peers:
        check("peers.name", check_name, peer.name)
        check("peers.address", parse_address, peer.address)
        check("peers.key", parse_key, peer.key)
    if len(os.fsencode(settings.paths.socket)) > MAX_SOCKET_PATH_BYTES:
        key = "paths.socket"
        raise ConfigError(
            f"{where(key)}: {key}: the path of a UNIX socket has at most {MAX_SOCKET_PATH_BYTES} "
            f"bytes; found {settings.paths.socket}. Choose a shorter one with --socket",
            file=where(key),
            key=key,
        )
