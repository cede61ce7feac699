"""The shim agent's process, as the keeper forks it: logs, signals, and the agent until its end.

It logs JSON, one event a line, to INSTANCE_DIR/agent.log, the working directory's.
"""

import os
import signal
import sys
from pathlib import Path

import trio

from optmigd.enclave_shim.agent import Agent
from optmigd.enclave_shim.kept import Inheritance
from optmigd.enclave_shim.logs import agent_logger
from optmigd.enclave_shim.platforms.sim import SimPlatform
from optmigd.protocol.errors import ConfigError

SWITCH_INTERVAL_S = 0.0005


def main(directory: Path, sim_root: Path | None, inheritance: Inheritance) -> int:
    """Run an agent until it is told to shut down; returns its exit status.

    Args:
        directory: INSTANCE_DIR, which is the working directory.
        sim_root: root key of the sim platform; None for the built-in one.
        inheritance: from the keeper.

    """
    try:
        platform = SimPlatform.from_file(sim_root)
    except (ConfigError, OSError) as error:
        print(f"optmigd.enclave_shim: {error}", file=sys.stderr)
        return 2
    # Pump threads hold the interpreter lock for short moments; the switchover waits for them.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    Path("agent.worker.pid").write_text(f"{os.getpid()}\n")
    with open("agent.log", "a", buffering=1) as log_file:
        log = agent_logger(log_file)
        agent = Agent(directory, platform, log, inheritance)
        if inheritance.restarts:
            log.warning(
                "agent_restarted",
                pid=os.getpid(),
                restarts=inheritance.restarts,
                last_end=inheritance.last_end,
            )
        else:
            log.info("agent_started", pid=os.getpid())
        trio.run(_run, agent)
        log.info("agent_ended")
    return 0


async def _run(agent: Agent) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        await agent.run()
        nursery.cancel_scope.cancel()


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
