"""How a migration ended that came to nothing here: the source has the last word.

The source decides whether a migration was cancelled or has failed, and this host may have seen
neither: it lost the link, or its own shim failed just when an operator cancelled there. Even an
`Abort` tells only what the source was about to journal. So the row here stays unsettled until the
source has been asked, for as long as the two hosts cannot talk, and is then closed with its word.
Nothing waits for that: the instance is gone already, and the enclave may be offered again.

One task asks one host, however many rows wait for its word.
"""

import trio

from optmigd.daemon.answers import param
from optmigd.daemon.asking import ask
from optmigd.daemon.host import Host
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.story import known_peer
from optmigd.protocol.errors import MigrationCancelled, MigrationFailed, OptmigError, to_wire
from optmigd.protocol.recovery import last_word

ASK_FIRST_S = 0.2
ASK_LAST_S = 30.0


def close_with_last_word(host: Host, row: MigrationRow) -> None:
    """Have a row closed as soon as the source says how its migration ended; returns at once.

    Args:
        host: this host.
        row: of an incoming migration of which nothing is left, journaled as `UNSETTLED`.
    """
    waiting = host.unsettled.setdefault(row.peer_key, [])
    waiting.append(row)
    if len(waiting) == 1:
        host.nursery.start_soon(_ask_for_all, host, row.peer_key)


async def _ask_for_all(host: Host, source: bytes) -> None:
    """Ask one source about its rows until none waits.

    Cancelled (the daemon stops): the journal has those that wait, for the next start.
    """
    waiting = host.unsettled[source]
    delay_s = ASK_FIRST_S
    while waiting:
        await trio.sleep(delay_s)
        delay_s = min(2 * delay_s, ASK_LAST_S)
        for row in list(waiting):
            log = host.log.bind(migration_id=row.migration_id.hex(), enclave=row.enclave)
            try:
                state = last_word(await _ask(host, row))
            except OptmigError as error:
                log.info("outcome_unknown", code=error.code, error=error.message)
                continue
            if state is not None:
                await _close(host, row, state)
                log.info("outcome_known", state=state)
                waiting.remove(row)
                delay_s = ASK_FIRST_S
    del host.unsettled[source]


async def _ask(host: Host, row: MigrationRow) -> str:
    params = {"migration_id": row.migration_id}
    answer = await ask(host, known_peer(host, row.peer_key), "outcome", params)
    return param(answer, "state", str)


async def _close(host: Host, row: MigrationRow, state: str) -> None:
    row.state = state
    if row.result.get("state") != state:
        name = host.peer_name(row.peer_key)
        error = (
            MigrationCancelled(f"the migration was cancelled on host {name}")
            if state == "cancelled"
            else MigrationFailed(f"the migration has failed on host {name}")
        )
        row.result = {**row.result, "state": state, "error": to_wire(error)}
        host.hub.publish(
            {
                "state": state,
                "migration_id": row.migration_id.hex(),
                "enclave": row.enclave,
                "role": row.role,
                "peer": name,
            }
        )
    await host.journal.write_soon(host.nursery, lambda: host.journal.save_migration(row))
