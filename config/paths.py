"""Where things are when nobody says: one rule, used by the daemon and by `optmigctl`."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DefaultPaths:
    """Default places of one user's daemon."""

    config_file: Path
    state_dir: Path
    socket: Path


def default_paths(state_dir: Path | None = None) -> DefaultPaths:
    """Return the default places for the user who runs this process.

    Args:
        state_dir: the state directory if it is known already; the control socket is in it when
            there is no ``$XDG_RUNTIME_DIR``.
    """
    if os.geteuid() == 0:
        return DefaultPaths(
            config_file=Path("/etc/optmigd/optmigd.toml"),
            state_dir=state_dir or Path("/var/lib/optmigd"),
            socket=Path("/run/optmigd.sock"),
        )
    state_dir = state_dir or _xdg("XDG_STATE_HOME", ".local/state") / "optmigd"
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    return DefaultPaths(
        config_file=_xdg("XDG_CONFIG_HOME", ".config") / "optmigd" / "optmigd.toml",
        state_dir=state_dir,
        socket=Path(runtime_dir) / "optmigd.sock"
        if os.path.isabs(runtime_dir)
        else state_dir / "control.sock",
    )


def _xdg(variable: str, below_home: str) -> Path:
    """A base directory. A relative value counts as unset. Source: XDG Base Directory 0.8."""
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / below_home
