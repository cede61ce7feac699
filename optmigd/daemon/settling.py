"""A migration that hangs because its other host is gone: what is known, and what may be done.

The hand-off rule leaves an operator two decisions, and this module offers no third. At a source
that has released, the delivery can be given up: the enclave runs at the destination or nowhere, and
never again here. At a destination that waits for its token, what has arrived can be discarded: it
has never run, and without the token never may. Neither can make a second owner; each can lose the
enclave, so neither is done without an explicit confirmation.
"""

from dataclasses import dataclass

import trio

from optmigd.daemon.answers import Params, param
from optmigd.daemon.asking import ask
from optmigd.daemon.host import Host, Incoming
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.story import known_peer
from optmigd.protocol.errors import MigrationError, OptmigError, RemoteProtocolError, Unconfirmed
from optmigd.protocol.recovery import UNSETTLED

ASK_TIMEOUT_S = 10.0

STANDINGS = frozenset(
    {
        "not-released",
        "released",
        "given-up",
        "arriving",
        "awaiting-token",
        "resumed",
        "completed",
        "failed",
        "cancelled",
        "unknown",
    }
)
"""What one host knows of a migration. `resumed`: it has run here. `unknown`: nothing."""

_MEANINGS: dict[str, dict[str, str]] = {
    "released": {
        "": "{peer} cannot be asked. It runs the enclave, or can run it when the token arrives, or "
        "has lost it. It does not run here and never will again",
        "resumed": "{peer} has run it: only the confirmation is missing, and the next delivery of "
        "the token brings it",
        "awaiting-token": "it runs nowhere at this moment: {peer} is ready and waits for the "
        "token, which is delivered again",
        "failed": "{peer} has nothing left that the token could start: the enclave is lost",
        "unknown": "{peer} knows nothing of this migration: the enclave is lost, unless that host "
        "has lost its journal and runs it",
    },
    "awaiting-token": {
        "": "{peer} cannot be asked. If it has not released the enclave, the enclave runs there. "
        "If it has, the instance here is the only one that may ever run, and only with the token "
        "that {peer} keeps on its disk",
        "not-released": "{peer} has not released the enclave: it runs there, and {peer} ends this "
        "migration or completes it",
        "released": "{peer} has released the enclave and delivers the token again: it will run "
        "here",
        "given-up": "{peer} has released the enclave and given up the delivery: it is lost, and "
        "what waits here is about to be destroyed",
        "failed": "{peer} has ended the migration, and the enclave runs there: what waits here is "
        "about to be destroyed",
        "cancelled": "{peer} has ended the migration, and the enclave runs there: what waits here "
        "is about to be destroyed",
    },
}
_ALONE = {
    "not-released": "nothing was released: the enclave runs here, whatever becomes of {peer}",
    "arriving": "it is still arriving from {peer}: if that host is gone, what has arrived is "
    "destroyed as soon as the broken connection is noticed",
    "resumed": "the enclave has arrived and run here: nothing is to be decided",
    "completed": "the migration was completed: nothing is to be decided",
    "failed": "the migration has failed: nothing is to be decided",
    "cancelled": "the migration was cancelled: nothing is to be decided",
    "given-up": "the enclave was released to {peer} and the delivery given up: it runs there or "
    "nowhere, and never again here",
}

_WAIT = "wait"
_CHOICES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "not-released": (
        (_WAIT, "optmigctl watch {enclave}", "it goes on, or fails and the enclave runs on here"),
        ("cancel", "optmigctl cancel {enclave}", "the enclave runs on here"),
    ),
    "released": (
        (_WAIT, "", "get {peer} back: the token is delivered again until it confirms"),
        (
            "give-up",
            "optmigctl recover {migration_id} --give-up --yes",
            "end the delivery: the enclave runs at {peer} or is lost, and never runs here again",
        ),
    ),
    "arriving": ((_WAIT, "", "the source decides: `optmigctl cancel {enclave}` on {peer}"),),
    "awaiting-token": (
        (_WAIT, "", "get {peer} back: it says what became of the migration"),
        (
            "discard",
            "optmigctl recover {migration_id} --discard --yes",
            "destroy what waits here: if {peer} had released the enclave, it is lost",
        ),
    ),
}
_DECISIONS = {"give-up": "released", "discard": "awaiting-token"}


@dataclass(frozen=True)
class _Case:
    """One migration as this host knows it."""

    row: MigrationRow
    standing: str
    live: OutgoingMigration | Incoming | None


async def recover(host: Host, params: Params) -> Params:
    """Show a migration and the choices; with `decision`, settle it first.

    Raises:
        MigrationError: there is no such migration, or nothing that this decision could settle.
        Unconfirmed: a decision without `confirmed`; the message says what it means.
    """
    case = await _find(host, params)
    decision = param(params, "decision", str, "")
    if decision:
        await _settle(host, case, decision, confirmed=param(params, "confirmed", bool, False))
        case = await _case(host, case.row.migration_id)
    return await _show(host, case, decision)


async def standing_for(host: Host, migration_id: bytes, asker: bytes) -> str:
    """Return what this host knows of a migration, for the host at its other end."""
    row = await host.journal.migration(migration_id)
    if row is None or row.peer_key != asker:
        return "unknown"
    return (await _case(host, migration_id)).standing


async def _find(host: Host, params: Params) -> _Case:
    if "migration_id" in params:
        text = param(params, "migration_id", str)
        try:
            migration_id = bytes.fromhex(text)
        except ValueError:
            migration_id = b""
        what = f"migration {text}"
    else:
        enclave = param(params, "enclave", str)
        what = f"a migration of enclave {enclave!r}"
        last = await host.journal.last_migration(enclave)
        migration_id = b"" if last is None else last.migration_id
    if not migration_id or await host.journal.migration(migration_id) is None:
        raise MigrationError(f"host {host.name} knows nothing of {what}")
    return await _case(host, migration_id)


async def _case(host: Host, migration_id: bytes) -> _Case:
    row = await host.journal.migration(migration_id)
    if row is None:
        raise MigrationError(f"host {host.name} knows nothing of migration {migration_id.hex()}")
    if row.role == "destination":
        incoming = host.incoming.get(migration_id)
        return _Case(row, _destination_standing(row, incoming), incoming)
    for stay in host.registry.stays(row.enclave):
        outgoing = stay.migration
        if isinstance(outgoing, OutgoingMigration) and outgoing.migration_id == migration_id:
            return _Case(row, "released" if outgoing.released else "not-released", outgoing)
    given_up = row.state == "failed" and row.token is not None
    return _Case(row, "given-up" if given_up else row.state, None)


def _destination_standing(row: MigrationRow, incoming: Incoming | None) -> str:
    if row.resumed is not None or (incoming is not None and incoming.owned):
        return "resumed"
    if incoming is None:  # while the source has the last word, this much is certain
        return "failed" if row.state == UNSETTLED else row.state
    return "awaiting-token" if incoming.awaits_token else "arriving"


async def _settle(host: Host, case: _Case, decision: str, *, confirmed: bool) -> None:
    if decision not in _DECISIONS:
        raise RemoteProtocolError(
            f"expected one of the decisions {', '.join(sorted(_DECISIONS))}, found {decision!r}"
        )
    if case.standing != _DECISIONS[decision]:
        raise MigrationError(
            f"{decision!r} settles a migration that is {_DECISIONS[decision]!r} here; this one is "
            f"{case.standing!r}: {_meaning(host, case, '')}",
            standing=case.standing,
        )
    if not confirmed:
        meaning = next(text for name, _, text in _CHOICES[case.standing] if name == decision)
        raise Unconfirmed(
            f"{decision!r} cannot be taken back: {_filled(host, case, meaning)}. "
            f"{_meaning(host, case, '')}. Nothing was done",
            decision=decision,
        )
    host.log.warning(
        "migration_settled_by_operator",
        migration_id=case.row.migration_id.hex(),
        enclave=case.row.enclave,
        decision=decision,
    )
    if isinstance(case.live, OutgoingMigration):
        await case.live.give_up()
    elif case.live is not None:
        await case.live.discard()


async def _show(host: Host, case: _Case, decision: str) -> Params:
    row = case.row
    there = await _ask_other_side(host, row) if case.standing in _MEANINGS else None
    return {
        "migration_id": row.migration_id.hex(),
        "enclave": row.enclave,
        "role": row.role,
        "peer": host.peer_name(row.peer_key),
        "here": case.standing,
        "there": there or None,
        "meaning": _meaning(host, case, there or ""),
        "choices": [
            {
                "choice": name,
                "command": _filled(host, case, command),
                "meaning": _filled(host, case, meaning),
            }
            for name, command, meaning in _CHOICES.get(case.standing, ())
        ],
        "decision": decision or None,
    }


async def _ask_other_side(host: Host, row: MigrationRow) -> str:
    """Ask the other host; empty if it does not answer in time."""
    params = {"migration_id": row.migration_id}
    with trio.move_on_after(ASK_TIMEOUT_S):
        try:
            answer = await ask(host, known_peer(host, row.peer_key), "standing", params)
            standing = param(answer, "standing", str)
        except OptmigError as error:
            host.log.info("standing_unknown", error=error.message)
            return ""
        return standing if standing in STANDINGS else ""
    return ""


def _meaning(host: Host, case: _Case, there: str) -> str:
    """What may be true, from what both sides know; an unexpected pair is as good as no answer."""
    if case.standing in _MEANINGS:
        known = _MEANINGS[case.standing]
        return _filled(host, case, known.get(there, known[""]))
    return _filled(host, case, _ALONE.get(case.standing, ""))


def _filled(host: Host, case: _Case, text: str) -> str:
    return text.format(
        peer=f"host {host.peer_name(case.row.peer_key)}",
        enclave=case.row.enclave,
        migration_id=case.row.migration_id.hex(),
    )
