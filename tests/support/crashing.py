"""An agent or a daemon that makes a mistake while secrets stand in its local variables.

`python -m tests.support.crashing agent|daemon FOLDER`: the secrets come on standard input, so that
they are in no file. The mistake happens twice: once where it is caught and logged, and once where
it ends the process.
"""

import sys
from pathlib import Path
from typing import Any

from optmigd.cli import serve
from optmigd.daemon import requests
from optmigd.enclave_shim import __main__ as shim
from optmigd.enclave_shim.agent import Agent

SECRET = sys.stdin.readline().strip() if __name__ == "__main__" else ""


def mistake(private_key: str, page: bytes) -> None:
    """Fail as a bug does, with secrets in every frame's variables."""
    session_keys = {"records": private_key, "page": [page]}
    raise ZeroDivisionError(f"{len(session_keys)} / 0")


def make_mistake() -> None:
    """Fail below a frame of its own."""
    secret = SECRET
    mistake(secret, secret.encode())


async def agent_run(self: Agent, *_: Any) -> None:
    """Instead of serving: the same logger, the same trio, the same end."""
    secret = SECRET
    try:
        make_mistake()
    except ZeroDivisionError:
        self._log.exception("migration_failed_unexpectedly", length=len(secret))
    make_mistake()


async def ping(context: requests.Context, params: dict[str, Any]) -> dict[str, Any]:
    """Answer a request with a mistake, which the daemon logs and survives."""
    secret = SECRET
    make_mistake()
    return {"secret": secret}


async def stop(context: requests.Context, params: dict[str, Any]) -> dict[str, Any]:
    """End the daemon with a mistake in its nursery."""

    async def fail() -> None:
        make_mistake()

    context.host.nursery.start_soon(fail)
    return {"exit_status": 0}


def main() -> int:
    """Run it with its real command line."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "agent":
        Agent.run = agent_run  # type: ignore[method-assign]
        return shim.main(["--dir", str(folder)])
    methods = requests._METHODS
    methods["ping"] = (ping, methods["ping"][1])
    methods["stop"] = (stop, methods["stop"][1])
    config = folder / "optmigd.toml"
    sys.argv = ["optmigd", "serve", "--config", str(config), "--listen", "127.0.0.1:0"]
    sys.argv += ["--socket", str(folder / "s"), "--state-dir", str(folder / "state"), "--name", "a"]
    serve.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
