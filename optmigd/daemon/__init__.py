"""The daemon of a host: `serve` runs one in a trio nursery."""

from optmigd.daemon.service import Daemon, serve
from optmigd.daemon.spawn import AGENT_COMMAND

__all__ = ["AGENT_COMMAND", "Daemon", "serve"]
