"""`python -m optmigd.enclave_shim --dir INSTANCE_DIR`: runs one shim agent.

The agent holds plaintext and keys, so before anything else it shuts out debuggers and core files.
It logs JSON, one event a line, to INSTANCE_DIR/agent.log.
"""

import argparse
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from optmigd.enclave_shim import linux
from optmigd.enclave_shim.agent import Agent
from optmigd.enclave_shim.logs import agent_logger
from optmigd.enclave_shim.platforms.sim import SimPlatform
from optmigd.protocol.errors import ConfigError

SWITCH_INTERVAL_S = 0.0005


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an agent until it is told to shut down; returns its exit status."""
    parser = argparse.ArgumentParser(prog="optmigd.enclave_shim", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the instance's directory")
    parser.add_argument("--ready-fd", type=int, help="gets one byte when the socket listens")
    parser.add_argument("--sim-root", type=Path, help="root key of the sim platform (a file)")
    options = parser.parse_args(arguments)
    directory = options.dir.resolve()
    try:
        platform = SimPlatform.from_file(options.sim_root and options.sim_root.resolve())
        os.chdir(directory)  # the socket's path may have 107 bytes only
    except (ConfigError, OSError) as error:
        print(f"optmigd.enclave_shim: {error}", file=sys.stderr)
        return 2
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.forbid_dumps()
    # Pump threads hold the interpreter lock for short moments; the switchover waits for them.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    Path("agent.pid").write_text(f"{os.getpid()}\n")

    def ready() -> None:
        if options.ready_fd is not None:
            os.write(options.ready_fd, b"\x01")
            os.close(options.ready_fd)

    with open("agent.log", "a", buffering=1) as log_file:
        log = agent_logger(log_file)
        agent = Agent(directory, platform, log)
        log.info("agent_started", pid=os.getpid())
        trio.run(_run, agent, ready)
        log.info("agent_ended")
    return 0


async def _run(agent: Agent, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        await agent.run("agent.sock", ready)
        nursery.cancel_scope.cancel()


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
