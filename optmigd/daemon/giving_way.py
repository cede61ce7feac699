"""While a switchover has this host's turn, the bulk work of its other migrations waits.

It waits for some tens of milliseconds, while its program runs on, and the switchover, whose program
stands still, has the processors and the link to itself. An agent that does not hear of it, or of
its end, loses time at most: see `bulk_gate` in the shim.
"""

from optmigd.daemon.agents import Agent
from optmigd.daemon.host import Host
from optmigd.daemon.nurseries import first_of
from optmigd.protocol.errors import ChannelClosed


async def give_way(host: Host) -> None:
    """Tell agents to hold their bulk work, and to go on, as the turn changes; never returns."""
    held: set[Agent] = set()
    while True:
        # Taken before looking: a change that comes while it looks is not missed.
        changes = host.turns.next_change, host.registry.next_change
        first = host.turns.switchover
        wanted = _others(host, first) if first is not None else set()
        for agent in held ^ wanted:
            # None waits for another. What one agent is told arrives in order: they wait in line.
            host.nursery.start_soon(_tell, host, agent, agent in wanted)
        held = wanted
        await first_of(*(change.wait for change in changes))


def _others(host: Host, switchover: bytes) -> set[Agent]:
    return {
        instance.agent
        for instance in host.registry.live()
        if instance.agent is not None
        and not instance.agent.gone.is_set()
        and instance.migration is not None
        and instance.migration.under_way
        and instance.migration.migration_id != switchover
    }


async def _tell(host: Host, agent: Agent, hold: bool) -> None:
    try:
        await agent.notify("hold", {"hold": hold})
    except ChannelClosed as error:
        host.log.debug("agent_not_told_to_give_way", error=error.message)
