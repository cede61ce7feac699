"""Making a configuration for a host that has none, so that `optmigd serve` just works."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from optmigd.config.files import make_private_directory, write_private
from optmigd.config.identity import HostIdentity
from optmigd.config.settings import Settings, load_settings
from optmigd.protocol.errors import ConfigError

_HEADING = """\
# Configuration of optmigd on this host. Every setting there is, with its default, is explained in
# default.toml and example.toml of the package optmigd.config. Peers: `optmigctl host add`.
"""


def create_config(
    path: str | os.PathLike[str], overrides: Mapping[str, object] | None = None
) -> Settings:
    """Write a new configuration file (mode 0600) that holds `overrides`, and make the host key.

    The host's name and listening address are always written down, so that they stay the same.
    A host key that exists already is kept.

    Args:
        path: the file to make; missing directories are made with mode 0700.
        overrides: settings by dotted key, as for `load_settings`; None counts as not given.

    Raises:
        ConfigError: a value cannot be, the file exists, or it cannot be written.
    """
    file = Path(path).expanduser().absolute()
    settings = load_settings(None, overrides)
    values: dict[str, dict[str, object]] = {
        "": {},
        "host": {"name": settings.host.name, "listen": settings.host.listen},
    }
    for dotted, value in (overrides or {}).items():
        table, _, key = dotted.rpartition(".")
        if value is not None:
            kept = getattr(getattr(settings, table) if table else settings, key)
            values.setdefault(table, {})[key] = str(kept) if isinstance(kept, Path) else kept
    try:
        make_private_directory(file.parent)
        write_private(file, _toml(values).encode(), replace=False)
    except FileExistsError as error:
        raise ConfigError(
            f"{file}: there is a configuration already; it is left as it is", file=str(file)
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{file}: the configuration cannot be written: {error}. Choose another place with "
            f"--config",
            file=str(file),
        ) from error
    settings = load_settings(file)
    HostIdentity.load_or_create(settings.paths.host_key)
    return settings


def _toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Write tables of plain values, "" being the top level.

    JSON's strings, numbers and booleans are TOML's too.
    """
    lines = [_HEADING]
    for name, table in tables.items():
        if table and name:
            lines.append(f"[{name}]")
        for key, value in table.items():
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
        if table:
            lines.append("")
    return "\n".join(lines)
