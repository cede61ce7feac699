"""What a daemon answers, as types.

The answers are plain dicts, handed on as they came: a newer daemon may say more than these types
know, and `optmigctl --json` prints all of it.
"""

from typing import Any, Literal, NotRequired, TypedDict


class Ping(TypedDict):
    """The daemon's own name, version and platform."""

    name: str
    version: str
    platform: str


class Launched(TypedDict):
    """A new enclave; `measurement` in hexadecimal."""

    enclave: str
    measurement: str
    platform: str
    tracker: str


class BlockerAnswer(TypedDict):
    """One reason why a migration cannot be."""

    code: str
    subject: str
    message: str


class Status(TypedDict):
    """One enclave; `migration` is the state of one under way or of the last one, or None.

    While a migration waits for its slot, its `queue` has the `position`, from 1, and the host that
    it `waits_for`; None otherwise.
    """

    enclave: str
    state: Literal["running", "migrating", "exited", "moved", "lost"]
    host: str
    platform: str
    measurement: str
    tracker: str
    memory_bytes: int
    resident_bytes: int
    exit_status: int | None
    owner_generation: int
    migration: dict[str, Any] | None
    dir: NotRequired[str | None]
    blockers: NotRequired[list[BlockerAnswer]]


class Exit(TypedDict):
    """How a program ended, and on which host; an `exit_status` of -N stands for signal N."""

    exit_status: int
    host: NotRequired[str]


class Owner(TypedDict):
    """Who may run an enclave; `since` as in ISO 8601, `since_s` in seconds since 1970.

    Both, and `migration_id`, are None where they are not known; an enclave that was launched where
    it is has no `migration_id`. `certain` is whether the owner itself has said so.
    """

    enclave: str
    owner: str
    owner_key: str
    state: Literal["running", "exited", "released", "incoming", "moved", "lost"]
    owner_generation: int
    since: str | None
    since_s: float | None
    migration_id: str | None
    certain: bool
    according_to: str
    asked: list[str]
    unreachable: list[str]


class Choice(TypedDict):
    """One thing that may be done about a migration, the command for it, and what it means."""

    choice: Literal["wait", "cancel", "give-up", "discard"]
    command: str
    meaning: str


class Recovery(TypedDict):
    """A migration as both its hosts know it; `there` is None if the other one did not answer."""

    migration_id: str
    enclave: str
    role: Literal["source", "destination"]
    peer: str
    here: str
    there: str | None
    meaning: str
    choices: list[Choice]
    decision: Literal["give-up", "discard"] | None


class Forgotten(TypedDict):
    """What was forgotten; `lost_way` is the host that this one can no longer point to."""

    enclave: str
    state: str
    lost_way: str | None


class Forecast(TypedDict, total=False):
    """What a migration would take now, from a sampled dirty rate (pages per second)."""

    rounds: int
    total_time_ms: float
    downtime_ms: float
    dirty_pages_rate: float


class RefusedCall(TypedDict):
    """A system call that was answered with ENOSYS: no obstacle if the program can do without."""

    call: str
    place: str


class Check(TypedDict):
    """The outcome of a preflight; no blockers means that a migration would start."""

    blockers: list[BlockerAnswer]
    forecast: Forecast | None
    holds: dict[str, dict[str, int]]
    refused_calls: list[RefusedCall]


class Round(TypedDict):
    """One finished round; `dirty_pages_rate` in pages per second."""

    round_no: int
    pages: int
    zero_pages: int
    bytes: int
    duration_ms: float
    dirty_pages_rate: float


class Migration(TypedDict):
    """A finished migration, as `optmigctl migrate --json` prints it.

    `throttle_permille` is the most of its time that the program was held back, `held_back_ms` how
    long in all; both are 0 where it converged by itself.
    """

    migration_id: str
    enclave: str
    source: str
    destination: str
    mode: Literal["precopy", "stop-and-copy"]
    state: str
    platform: str
    rounds: list[Round]
    total_bytes: int
    transferred_bytes: int
    zero_pages: int
    setup_time_ms: float
    downtime_ms: float
    total_time_ms: float
    throughput_mbps: float
    queued_time_ms: float
    throttle_permille: int
    held_back_ms: float
    state_digest: str
    owner_generation: int
    verified: bool | None
    downtime_parts_ms: NotRequired[dict[str, float]]


class CancelAnswer(TypedDict):
    """The migration that was asked to stop, and its state then."""

    migration_id: str
    state: str


class Changed(TypedDict):
    """A migration's settings that can be changed under way; `max_bandwidth` in bytes per second."""

    migration_id: str
    downtime_limit_ms: float
    max_bandwidth: int
    on_stall: Literal["throttle", "switch", "abort"]


class Identity(TypedDict):
    """What the operators of peers need to know of this host."""

    name: str
    listen: str
    key: str
    fingerprint: str


class PeerAnswer(TypedDict):
    """A pinned peer."""

    name: str
    address: str
    key: str
    fingerprint: str
