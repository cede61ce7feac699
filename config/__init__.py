"""Settings, the host's identity and its peers.

`default.toml` holds the default of every setting, `example.toml` a configuration to start from,
`optmigd.service` a systemd unit.
"""

from optmigd.config.addresses import (
    fingerprint,
    format_address,
    format_key,
    parse_address,
    parse_key,
)
from optmigd.config.create import create_config
from optmigd.config.identity import HostIdentity
from optmigd.config.paths import DefaultPaths, default_paths
from optmigd.config.peers import Peer, PeerBook
from optmigd.config.settings import (
    HostSettings,
    LimitSettings,
    LogSettings,
    MigrationSettings,
    PathSettings,
    PeerSettings,
    PlatformSettings,
    Settings,
    find_socket,
    load_settings,
)

__all__ = [
    "DefaultPaths",
    "HostIdentity",
    "HostSettings",
    "LimitSettings",
    "LogSettings",
    "MigrationSettings",
    "PathSettings",
    "Peer",
    "PeerBook",
    "PeerSettings",
    "PlatformSettings",
    "Settings",
    "create_config",
    "default_paths",
    "find_socket",
    "fingerprint",
    "format_address",
    "format_key",
    "load_settings",
    "parse_address",
    "parse_key",
]
