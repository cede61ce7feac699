"""What an agent notes in the vault, so that the next one can go on where it stopped.

There is one record: the instance, and where its last migration stands. Every note replaces the
whole record, so what is no longer needed, keys above all, is gone with the next note. The host
never sees any of it.
"""

from typing import Any, Literal

import msgspec

from optmigd.enclave_shim.migration.common import Binding
from optmigd.enclave_shim.platforms import Claims
from optmigd.enclave_shim.vault import Vault, VaultFull
from optmigd.protocol.session import Manifest
from optmigd.protocol.wiping import wipe


class InstanceNote(msgspec.Struct):
    """A process that has booted, and which enclave it is.

    Attributes:
        pid: of the process, for telling it from one that never booted.
        name, policy, measurement: the enclave's; the policy as it was given.
        generation: of its owner.
        own_dir, virtual_dir, io_files: as `migration.common.Enclave` has them, paths as text.
        tracker_errno: why it has no tracker.

    """

    pid: int
    name: str
    policy: bytes
    measurement: bytes
    generation: int
    own_dir: str
    virtual_dir: str
    io_files: dict[str, str]
    tracker_errno: int


class SourceFacts(msgspec.Struct):
    """What the source's report is made of. Times are CLOCK_MONOTONIC's, the same in every agent."""

    mode: str
    started_s: float
    setup_s: float | None = None
    total_bytes: int = 0
    transferred_bytes: int = 0
    throttle_permille: int = 0
    held_back_ms: float = 0.0
    parked_ns: int = 0
    parked_real_ns: int = 0
    rounds: list[dict[str, Any]] = []
    core: bytes = b""
    state_digest: bytes = b""
    verified: bool = False
    peer: Claims | None = None


class DestinationFacts(msgspec.Struct):
    """What the destination's report is made of."""

    started_s: float
    setup_s: float | None = None
    received_bytes: int = 0
    peer: Claims | None = None


class UnderWay(msgspec.Struct, tag="under-way"):
    """Nothing is handed over yet: a new agent ends it."""

    migration_id: bytes
    role: Literal["source", "destination"]


class Released(msgspec.Struct, tag="released"):
    """The source's token is sealed.

    Noted *before* the control block says `released`, and the token is let out after that. So where
    the control block does not say it, nothing was let out: the source runs on and the token is
    forgotten. Where it does, there is only forward.
    """

    binding: Binding
    token: bytes
    resumed_key: bytes
    facts: SourceFacts
    parts_ms: dict[str, float]
    released_s: float


class AwaitingToken(msgspec.Struct, tag="awaiting-token"):
    """The destination has said READY, or is about to; with a confirmation: it runs.

    The keys are empty once the confirmation is sealed. `manifest` is without its files.
    """

    binding: Binding
    generation: int
    instance: bytes
    digest: bytes
    manifest: Manifest
    same_clock: bool
    token_key: bytes
    resumed_key: bytes
    confirmation: bytes
    facts: DestinationFacts
    parts_ms: dict[str, float]


class Over(msgspec.Struct, tag="over"):
    """It has ended; what the daemon is told of it, and told again when it connects.

    Attributes:
        confirmation: what the destination repeats; empty for a source or a failure.

    """

    migration_id: bytes
    role: Literal["source", "destination"]
    outcome: str
    error: dict[str, Any] | None
    report: dict[str, Any]
    confirmation: bytes = b""


MigrationNote = UnderWay | Released | AwaitingToken | Over


class Record(msgspec.Struct):
    """All that the vault holds."""

    instance: InstanceNote | None = None
    migration: MigrationNote | None = None


class Memory:
    """The vault's record, read and replaced as a whole. Noting takes well below a millisecond."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        found = vault.load()
        self._record = msgspec.msgpack.decode(found, type=Record) if found else Record()
        wipe(found)

    @property
    def instance(self) -> InstanceNote | None:
        """The instance, if one has booted."""
        return self._record.instance

    @property
    def migration(self) -> MigrationNote | None:
        """Where the last migration stands."""
        return self._record.migration

    def note_instance(self, note: InstanceNote) -> None:
        """Note the instance."""
        self._record.instance = note
        self._store()

    def note_migration(self, note: MigrationNote, *, generation: int = 0) -> None:
        """Note where the migration stands, and the owner's new generation if there is one.

        Raises:
            VaultFull: it is too long; what was noted before stays.

        """
        before = self._record.migration
        self._record.migration = note
        if generation and self._record.instance is not None:
            self._record.instance.generation = generation
        try:
            self._store()
        except VaultFull:
            self._record.migration = before
            raise

    def note_end(self, note: Over) -> None:
        """Note that a migration has ended, without its report if that is too long."""
        try:
            self.note_migration(note)
        except VaultFull:
            note.report = {}
            self.note_migration(note)

    def _store(self) -> None:
        encoded = msgspec.msgpack.encode(self._record)
        try:
            self._vault.store(encoded)
        finally:
            wipe(encoded)
