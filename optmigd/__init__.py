"""Live migration of large enclaves between hosts that the enclave does not trust.

What an embedding program needs:

- `serve` runs a daemon inside its own trio nursery, with `Settings` from `load_settings`;
- `Client` asks a daemon from trio code, `BlockingClient` from code without trio;
- every error is an `OptmigError`.

Importing this package starts nothing and configures no logging; each name is loaded when it is
first used, so that a blocking client does not pay for trio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optmigd.blocking import BlockingClient
    from optmigd.client import Client
    from optmigd.config import Settings, load_settings
    from optmigd.daemon import serve
    from optmigd.protocol.errors import OptmigError

__version__ = "0.1.0"

__all__ = [
    "BlockingClient",
    "Client",
    "OptmigError",
    "Settings",
    "__version__",
    "load_settings",
    "serve",
]

_HOME = {
    "BlockingClient": "optmigd.blocking",
    "Client": "optmigd.client",
    "OptmigError": "optmigd.protocol.errors",
    "Settings": "optmigd.config",
    "load_settings": "optmigd.config",
    "serve": "optmigd.daemon",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
