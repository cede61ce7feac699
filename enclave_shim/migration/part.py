"""What the agent may ask of a migration, whichever side and stage it is; and what is told of it."""

from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import Binding, Emit, Enclave, Params, Streams
from optmigd.enclave_shim.remembered import Memory, Over
from optmigd.protocol.convergence import OnStall
from optmigd.protocol.errors import EnclaveError, OptmigError, RemoteProtocolError, to_wire
from optmigd.protocol.handoff import Migration, Role
from optmigd.protocol.handoff_seals import Role as RoleName


class Announcer:
    """Tells the daemon a migration's state and end, and the end again to every later daemon.

    Args:
        migration: whose.
        migration_id: its id.
        emit: sends events to the daemon.
        memory: where the end is noted before it is told.

    """

    def __init__(
        self, migration: Migration, migration_id: bytes, emit: Emit, memory: Memory
    ) -> None:
        self._migration = migration
        self._migration_id = migration_id
        self._emit = emit
        self._memory = memory
        self._state = ""
        self._ended: Params | None = None

    async def enter(self, *, again: bool = False) -> None:
        """Tell the state, if it is a new one or is to be told `again`."""
        state = self._migration.state.value
        if again or state != self._state:
            self._state = state
            await self._emit("state", {"state": state})

    async def end(
        self, outcome: str, error: OptmigError | None, report: Params, confirmation: bytes = b""
    ) -> None:
        """Note the end, then tell it."""
        fields = None if error is None else to_wire(error)
        role: RoleName = "source" if self._migration.role is Role.SOURCE else "destination"
        over = Over(self._migration_id, role, outcome, fields, report, confirmation)
        self._memory.note_end(over)
        self._ended = {"outcome": outcome, "error": fields, "report": over.report}
        await self._emit("ended", self._ended)

    async def recall(self, over: Over) -> None:
        """Take over an end that an earlier agent has noted, and tell it."""
        self._ended = {"outcome": over.outcome, "error": over.error, "report": over.report}
        await self._emit("ended", self._ended)

    async def repeat_end(self) -> None:
        """Tell the end again, if there is one."""
        if self._ended is not None:
            await self._emit("ended", self._ended)


class Part:
    """One side of one migration. `run` carries it through; the rest is called meanwhile and after.

    Attributes:
        binding: which migration.
        migration: its place in the table.
        enclave: the instance on this side, if there is one yet.
        streams: its data streams.
        bulk_gate: where its bulk work waits for the switchovers of others.
        announcer: tells the daemon.

    """

    def __init__(
        self,
        binding: Binding,
        migration: Migration,
        announcer: Announcer,
        *,
        enclave: Enclave | None = None,
        streams: int = 0,
    ) -> None:
        self.binding = binding
        self.migration = migration
        self.enclave = enclave
        self.streams = Streams(streams)
        self.bulk_gate = BulkGate()
        self.announcer = announcer

    @property
    def arrived(self) -> bool:
        """Whether this is a destination at which the program runs, or ran."""
        return self.migration.role is Role.DESTINATION and self.migration.released

    async def run(self) -> None:
        """Carry it through; `ended` was told, or noted for the next daemon, when this returns."""
        raise NotImplementedError

    def cancel(self) -> None:
        """End it.

        Raises:
            AlreadyReleased: it is too late.

        """
        raise NotImplementedError

    def change_orders(
        self,
        *,
        downtime_limit_ms: float | None = None,
        max_bandwidth: int | None = None,
        on_stall: OnStall | None = None,
    ) -> Params:
        """Change what a migration was told when it began; None leaves it as it is.

        Returns:
            All three as they are now.

        Raises:
            EnclaveError: this side does not decide about them, or it has ended.
            AlreadyReleased: it is too late.

        """
        raise EnclaveError("the enclave comes here: ask the host that it leaves")

    def take_turn(self) -> None:
        """It is this migration's turn to switch over.

        Raises:
            EnclaveError: this side does not decide when.

        """
        raise EnclaveError("the enclave comes here: its source decides when to switch over")

    def deliver(self, payload: bytes) -> None:
        """Take a payload of the attested session; where no session is any more, drop it."""

    def daemon_lost(self) -> None:
        """The daemon's connection has ended."""

    async def daemon_back(self) -> None:
        """A daemon has connected: tell it what it may have missed."""
        await self.announcer.repeat_end()

    def link_lost(self) -> None:
        """The daemon's link to the peer has ended; where that changes nothing, do nothing."""

    async def token_delivered(self, payload: bytes) -> None:
        """Take the right to execute."""
        raise RemoteProtocolError("a token for who is no destination")

    async def resumed_delivered(self, payload: bytes) -> None:
        """Take the destination's confirmation."""
        raise RemoteProtocolError("a confirmation for who is no source")
