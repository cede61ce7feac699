"""What the daemon knows of a migration, and how it is told to clients.

Both roles keep a record: fed by the shim agent's events, shown in `status` and `watch`, and in the
end the object that `migrate --json` prints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from optmigd.daemon.answers import Params, param
from optmigd.protocol.errors import RemoteProtocolError

MAX_ROUNDS_KEPT = 2000
"""Rounds beyond these are counted in the totals but no longer listed: a result is one frame."""

STATES = frozenset(
    {
        "setup",
        "active",
        "pre-switchover",
        "switchover",
        "completed",
        "failed",
        "cancelling",
        "cancelled",
    }
)
FINISHED = frozenset({"completed", "failed", "cancelled"})

_PROGRESS = (
    "round_no",
    "transferred_bytes",
    "remaining_bytes",
    "total_bytes",
    "dirty_pages_rate",
    "throughput_mbps",
    "expected_downtime_ms",
)
_ROUND = ("round_no", "pages", "zero_pages", "bytes", "duration_ms", "dirty_pages_rate")
_REPORT: dict[str, object] = {
    "total_bytes": 0,
    "transferred_bytes": 0,
    "zero_pages": 0,
    "setup_time_ms": 0.0,
    "downtime_ms": 0.0,
    "total_time_ms": 0.0,
    "throughput_mbps": 0.0,
    "throttle_permille": 0,
    "held_back_ms": 0.0,
    "state_digest": "",
    "owner_generation": 0,
    "verified": None,
    "downtime_parts_ms": {},
}


@dataclass
class MigrationRecord:
    """One migration as seen from one host. `publish` gets every event for watchers."""

    migration_id: bytes
    enclave: str
    role: str
    peer: str
    source: str
    destination: str
    mode: str
    publish: Callable[[Params], None] = field(repr=False)
    dry_run: bool = False
    platform: str = ""
    state: str = "setup"
    rounds: list[Params] = field(default_factory=list)
    progress: Params = field(default_factory=dict)
    report: Params = field(default_factory=dict)
    error: Params | None = None
    settings: Params = field(default_factory=dict)
    queue: Params | None = None
    queued_time_ms: float = 0.0

    def stand_in_queue(self, position: int, waits_for: str) -> None:
        """Note a new place in the queue before a host; position 0: it is its turn."""
        place = {"position": position, "waits_for": waits_for}
        self.queue = place if position else None
        self._tell({"queue": place})

    def change_settings(self, settings: Params) -> None:
        """Note what a client has changed."""
        self.settings = settings
        self._tell({"settings": settings})

    def set_state(self, state: str) -> None:
        """Enter a state and tell the watchers; nothing if it is in it already."""
        if state != self.state:
            self.state = state
            self._tell({"state": state})

    def take(self, event: str, params: Params) -> None:
        """Take a `state`, `progress` or `round` event of the shim agent; others are left alone.

        Final states are not taken from here: the daemon sets them when it has done its part.

        Raises:
            RemoteProtocolError: it has another form than contract 1 says.
        """
        if event == "state":
            state = param(params, "state", str)
            if state not in STATES:
                raise RemoteProtocolError(f"expected a migration state, found {state!r}")
            if state not in FINISHED and self.state not in FINISHED:
                self.set_state(state)
        elif event == "progress":
            self.progress = _numbers(params, _PROGRESS)
            self._tell({"progress": self.progress})
        elif event == "round":
            self.rounds = [*self.rounds, _numbers(params, _ROUND)][-MAX_ROUNDS_KEPT:]
            self._tell({"round": self.rounds[-1]})

    def finish(self, state: str, error: Params | None = None) -> None:
        """Enter a final state."""
        self.error = error
        self.queue = None
        self.set_state(state)

    def summary(self) -> Params:
        """The field `migration` of `status`."""
        return {
            "migration_id": self.migration_id.hex(),
            "role": self.role,
            "peer": self.peer,
            "state": self.state,
            "mode": self.mode,
            "queue": self.queue,
            "settings": self.settings,
            "progress": self.progress,
            "error": self.error,
        }

    def result(self) -> Params:
        """The object of `migrate --json`."""
        rounds = self.report.get("rounds")
        result: Params = {
            "migration_id": self.migration_id.hex(),
            "enclave": self.enclave,
            "source": self.source,
            "destination": self.destination,
            "mode": self.mode,
            "state": self.state,
            "platform": self.report.get("platform", self.platform),
            "rounds": rounds if isinstance(rounds, list) else self.rounds,
            "queued_time_ms": round(self.queued_time_ms, 3),
        }
        for key, default in _REPORT.items():
            value = self.report.get(key)
            result[key] = self.progress.get(key, default) if value is None else value
        if self.error is not None:
            result["error"] = self.error
        return result

    def _tell(self, event: Params) -> None:
        self.publish(
            event
            | {
                "migration_id": self.migration_id.hex(),
                "enclave": self.enclave,
                "role": self.role,
                "peer": self.peer,
            }
        )


def _numbers(params: Params, names: tuple[str, ...]) -> Params:
    """Pick figures; one that is not known yet is nil."""
    found = {}
    for name in names:
        value = params.get(name, 0)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise RemoteProtocolError(f"expected a number or nil for {name!r}")
        found[name] = value
    return found
