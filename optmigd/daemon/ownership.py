"""Who may run an enclave, since when, and how sure that is.

Every host that ever held the enclave can be asked. Its own journal says what it knows for certain:
that it owns the enclave, or that it let it go, when, and to whom. From there the question goes from
host to host along the way that the enclave took. The owner generation must grow with every step,
so the question cannot run in a circle; and the steps are counted down, so that no chain of hosts
holds it for ever. Where a host on the way does not answer, the answer is what is known up to there,
and says that it is not certain.

What a peer answers is that host's word, not evidence: the receipts of the migrations are.
"""

import datetime
from dataclasses import asdict, dataclass, field
from typing import Any

from optmigd.config import format_key, parse_key
from optmigd.daemon.answers import Params, param, texts
from optmigd.daemon.asking import ask
from optmigd.daemon.host import Host
from optmigd.daemon.outgoing import OutgoingMigration
from optmigd.daemon.registry import Instance
from optmigd.daemon.story import known_peer, latest
from optmigd.protocol.errors import (
    ChannelError,
    ConfigError,
    HostError,
    OptmigError,
    RemoteProtocolError,
)

MAX_HOPS = 16
"""Hosts that one question may be handed on to in turn."""

STATES = frozenset({"running", "exited", "released", "incoming", "moved", "lost"})


@dataclass
class Account:
    """What is known of an enclave's owner; the object of `optmigctl owner --json`.

    `state` is `running` or `exited` where the owner says so itself; else the last that is known:
    `released` (let go of, not confirmed), `moved` (confirmed), `lost` (let go of, and the delivery
    given up), or `incoming` (on its way to the host that answers).
    """

    enclave: str
    owner: str
    owner_key: str
    state: str
    owner_generation: int
    since: str | None
    since_s: float | None
    migration_id: str | None
    certain: bool
    according_to: str
    asked: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """Where the question goes from here: a host key, and the lowest generation meant there."""

    key: bytes
    generation: int


async def find_owner(
    host: Host, enclave: str, least_generation: int, asker: bytes | None, hops: int = MAX_HOPS
) -> Params:
    """Return who may run the enclave, or `returned` where the asker itself knows more.

    Args:
        host: this host.
        enclave: its id.
        least_generation: as for `story.latest`.
        asker: the key of the host that asks; None: a client.
        hops: how many more hosts may be asked in turn.

    Raises:
        UnknownEnclave: this host has never had it.
    """
    while True:
        instance = latest(host, enclave, least_generation)
        account, step = _own_account(host, instance)
        if step is None:
            return asdict(account)
        if step.key == asker and account.state == "moved":
            return {"returned": step.generation}
        if step.key == asker or hops <= 0:
            return asdict(account)
        told = await _ask_next(host, account, step, hops)
        if isinstance(told, Account):
            return asdict(told)
        # The peer may say that it came back, and nothing here know of that.
        if told is None or host.registry.current(enclave).row.generation < told:
            return asdict(account)
        least_generation = told


def _own_account(host: Host, instance: Instance) -> tuple[Account, _Step | None]:
    """What this host's own journal says, and who may know more."""
    row, migration = instance.row, instance.migration
    since_s, migration_id = row.since_s, row.migration_id
    step: _Step | None = None
    state = "exited" if row.state == "exited" else "running"
    if row.state in ("moved", "lost") and row.moved_to is not None:
        state, step = row.state, _Step(row.moved_to, row.generation + 1)
    elif isinstance(migration, OutgoingMigration) and migration.released:
        state, step = "released", _Step(migration.peer_key, row.generation + 1)
        since_s, migration_id = migration.released_s, migration.migration_id
    elif row.state == "incoming" and row.came_from is not None:
        # Nobody has owned it here yet: up to now the source knows more.
        state, step = "incoming", _Step(row.came_from, row.generation - 1)
        since_s = 0.0
    key = step.key if step is not None else host.identity.public
    account = Account(
        enclave=row.enclave,
        owner=host.peer_name(key),
        owner_key=format_key(key),
        state=state,
        owner_generation=step.generation if step is not None else row.generation,
        since=_iso(since_s),
        since_s=since_s or None,
        migration_id=None if migration_id is None else migration_id.hex(),
        certain=step is None,
        according_to=host.name,
    )
    return account, step


async def _ask_next(host: Host, account: Account, step: _Step, hops: int) -> Account | int | None:
    """Ask the next host; notes in the account whether it answered.

    Returns:
        What it knows; the generation in which it went back to this host; None: nothing.
    """
    params = {"enclave": account.enclave, "generation": step.generation, "hops": hops - 1}
    name = host.peer_name(step.key)
    try:
        answer = await ask(host, known_peer(host, step.key), "owner", params)
        told = _checked(host, account, step, answer)
    except (HostError, ChannelError) as error:
        account.unreachable.append(name)
        host.log.info("owner_not_asked", enclave=account.enclave, peer=name, error=error.message)
        return None
    except OptmigError as error:
        account.asked.append(name)
        host.log.info("owner_not_told", enclave=account.enclave, peer=name, error=error.message)
        return None
    account.asked.append(name)
    if isinstance(told, Account):
        told.asked.insert(0, name)
    return told


def _checked(host: Host, account: Account, step: _Step, answer: Params) -> Account | int:
    """Read a peer's answer; whatever it says, it is about this enclave and no older generation.

    Raises:
        RemoteProtocolError: it is not an answer.
    """
    if "returned" in answer:
        returned = param(answer, "returned", int)
        if returned < step.generation:
            raise RemoteProtocolError(
                f"expected its return in generation {step.generation} or later, found {returned}"
            )
        return returned
    generation = param(answer, "owner_generation", int)
    state = param(answer, "state", str)
    if generation < step.generation or state not in STATES:
        raise RemoteProtocolError(
            f"expected an owner in generation {step.generation} or later, found {state!r} in "
            f"generation {generation}"
        )
    key_text = param(answer, "owner_key", str)
    try:
        key = parse_key(key_text)
    except ConfigError as error:
        raise RemoteProtocolError(f"expected the key of a host: {error.message}") from error
    known = key == host.identity.public or host.peers.by_key(key) is not None
    since_s = param(answer, "since_s", float, 0.0)
    return Account(
        enclave=account.enclave,
        # A host is called here what it is called here, and by its own peer's word otherwise.
        owner=host.peer_name(key) if known else param(answer, "owner", str),
        owner_key=key_text,
        state=state,
        owner_generation=generation,
        since=_iso(since_s),
        since_s=since_s or None,
        migration_id=_optional_text(answer, "migration_id"),
        certain=param(answer, "certain", bool),
        according_to=param(answer, "according_to", str),
        asked=texts(answer, "asked"),
        unreachable=texts(answer, "unreachable"),
    )


def _optional_text(answer: dict[str, Any], name: str) -> str | None:
    return None if answer.get(name) is None else param(answer, name, str)


def _iso(since_s: float) -> str | None:
    if not since_s:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(since_s, datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise RemoteProtocolError(f"expected a time of day, found {since_s!r}") from error
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
