"""The shim agent: one enclave instance, from its launch or arrival to its end or departure.

The agent is a trio program that answers Contract 1 (docs/architecture.md). It outlives the daemon:
what a daemon must not miss is repeated to the next one (`connected`). It owns at most one instance
and at most one migration at a time; the last migration is kept, because its token or its
confirmation may arrive again. If it crashes, its keeper starts another one, which takes up the
instance and the migration before it answers anybody.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog
import trio

from optmigd.enclave_shim import abi, preflight, requests, status, trackers
from optmigd.enclave_shim.abi import Mode, RtState
from optmigd.enclave_shim.connection import Params, Server
from optmigd.enclave_shim.instance import Maker, identify
from optmigd.enclave_shim.kept import Inheritance
from optmigd.enclave_shim.migration.common import (
    Binding,
    Emit,
    Enclave,
    ExportOrders,
    Identity,
    ReceiveOrders,
)
from optmigd.enclave_shim.migration.destination import Destination
from optmigd.enclave_shim.migration.forecast import sample_dirty
from optmigd.enclave_shim.migration.part import Part
from optmigd.enclave_shim.migration.resumption import (
    let_run,
    migration_id_of,
    resume_part,
)
from optmigd.enclave_shim.migration.source import Source
from optmigd.enclave_shim.platforms import Platform
from optmigd.enclave_shim.remembered import Memory
from optmigd.enclave_shim.starting import DEFAULT_OWN_DIR, Start, discard
from optmigd.enclave_shim.trackers import Wanted
from optmigd.enclave_shim.vault import Vault
from optmigd.protocol.errors import (
    AlreadyMigrating,
    ChannelClosed,
    EnclaveError,
    OptmigError,
    RemoteProtocolError,
    TrackerUnavailable,
)
from optmigd.protocol.handoff import Role

MUST_ARRIVE = frozenset({"session", "release", "resumed"})


class Agent:
    """The agent of one instance directory, which is the working directory.

    Args:
        directory: INSTANCE_DIR.
        platform: makes and checks evidence here.
        log: where to.
        inheritance: from the keeper: the socket, the vault, and what an earlier agent has left.

    """

    def __init__(
        self,
        directory: Path,
        platform: Platform,
        log: structlog.stdlib.BoundLogger,
        inheritance: Inheritance,
    ) -> None:
        self._directory = directory
        self._platform = platform
        self._log = log
        self._inheritance = inheritance
        self._memory = Memory(Vault(inheritance.vault_fd))
        self._server = Server(self, log)
        self._enclave: Enclave | None = None
        self._migration: Part | None = None
        self._busy = False
        self._hold_bulk = False
        self._exit_status: int | None = None
        self._stopping = trio.Event()
        self._idle = trio.Event()  # no migration is under way
        self._idle.set()
        self._digests = preflight.DigestCache()
        self._methods: dict[str, Callable[[Params, int], Awaitable[Params]]] = {
            "launch": self._launch,
            "receive": self._receive,
            "export": self._export,
            "add_stream": self._add_stream,
            "cancel": self._cancel,
            "link_lost": self._link_lost,
            "set": self._set,
            "take_turn": self._take_turn,
            "status": self._status,
            "sample_dirty": self._sample_dirty,
            "stop": self._stop,
            "shutdown": self._shutdown,
        }

    async def run(self) -> None:
        """Serve until told to shut down; then the keeper ends the program.

        Raises:
            OSError, OptmigError: what an earlier agent has left could not be taken up.

        """
        if self._platform.warning:
            self._log.warning("platform_gives_no_protection", warning=self._platform.warning)
        inheritance = self._inheritance
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._maker = Maker(nursery, inheritance.keeper, self._memory, self._digests)
            await self._take_up()
            await nursery.start(self._server.serve, inheritance.listener, nursery)
            inheritance.keeper.ready()
            await self._stopping.wait()
            nursery.cancel_scope.cancel()

    async def _take_up(self) -> None:
        """Go on where an earlier agent has stopped."""
        kept, known = self._inheritance.process, self._memory.instance
        enclave: Enclave | None = None
        if kept is not None and known is not None and known.pid == kept.pid:
            enclave = await self._maker.take_up(kept, known, self._platform)
        elif kept is not None:  # it had not booted, and nobody was told of it
            await trio.to_thread.run_sync(discard, self._inheritance.keeper, kept)
        part: Part | None = None
        if note := self._memory.migration:
            migration_id = migration_id_of(note)
            log = self._log.bind(migration_id=migration_id.hex())
            emit = self._emitter(migration_id)
            part = resume_part(note, enclave, self._memory, emit, log, self._replace)
            log.info(
                "migration_taken_up",
                role=part.migration.role.value,
                phase=part.migration.phase.value,
            )
        if enclave is not None:
            if part is None or part.migration.role is Role.SOURCE or part.arrived:
                self._enclave = enclave
                await let_run(enclave)
            self._nursery.start_soon(self._tell_exit, enclave)
            self._log.info("enclave_taken_up", pid=enclave.process.pid)
        if part is not None:
            self._begin(part)

    # ---- Handler ----

    async def request(self, method: str, params: Params, fd: int) -> Params:
        """Answer a request; see `Handler`."""
        handler = self._methods.get(method)
        if handler is None:
            raise RemoteProtocolError(f"this agent knows no method {method!r}")
        return await handler(params, fd)

    async def event(self, event: str, params: Params) -> None:
        """Take a one-way message; see `Handler`. One that fits nothing is logged and dropped."""
        migration = self._migration
        if event == "hold":
            self._hold_bulk = requests.read_params(params, requests.Hold).hold
            self._move_gate()
            return
        message = requests.read_params(params, requests.Payload)
        if migration is None or migration.binding.migration_id != message.migration_id:
            self._log.info("event_of_unknown_migration_ignored", event_name=event)
            return
        try:
            if event == "session":
                migration.deliver(message.payload)
            elif event == "token_delivered":
                await migration.token_delivered(message.payload)
            elif event == "resumed_delivered":
                await migration.resumed_delivered(message.payload)
            else:
                self._log.warning("event_refused", event_name=event)
        except OptmigError as error:
            self._log.warning("event_refused", event_name=event, code=error.code, error=str(error))

    def _move_gate(self) -> None:
        """Hold, or let go, the bulk work of a migration; see `bulk_gate`."""
        if self._migration is not None:
            self._migration.bulk_gate.set(shut=self._hold_bulk)

    async def connected(self) -> None:
        """Repeat what was left unanswered; see `Handler`."""
        if self._migration is not None:
            await self._migration.daemon_back()
        if self._exit_status is not None:
            await self._server.send("exited", {"exit_status": self._exit_status})

    def answered(self, method: str) -> None:
        """End after the answer to `shutdown`; see `Handler`."""
        if method == "shutdown":
            self._stopping.set()

    def disconnected(self) -> None:
        """The daemon has gone; see `Handler`."""
        self._hold_bulk = False  # whoever would have said that it is over
        self._move_gate()
        if self._migration is not None:
            self._migration.daemon_lost()

    # ---- the instance ----

    async def _launch(self, params: Params, fd: int) -> Params:
        wanted = requests.read_params(params, requests.Launch)
        self._claim()
        try:
            identity = await identify(wanted.enclave, wanted.image, wanted.policy, self._platform)
            own_dir = Path(wanted.own_dir) if wanted.own_dir else self._directory / "own"
            if not wanted.own_dir:
                own_dir.mkdir(mode=0o700, exist_ok=True)
            elif not own_dir.is_absolute() or not own_dir.is_dir():
                raise EnclaveError(f"the enclave's own directory {own_dir} is not a directory")
            io_files = {"output.log": self._directory / "output.log"}
            if wanted.stdin:
                io_files["stdin"] = Path(wanted.stdin)
            self._enclave = await self._maker.start(
                identity,
                Mode.LAUNCH,
                wanted.memory_bytes,
                Start(
                    name=wanted.enclave,
                    own_dir=own_dir,
                    output=io_files["output.log"],
                    stdin=io_files.get("stdin"),
                    virtual_dir=str(own_dir) if wanted.own_dir else DEFAULT_OWN_DIR,
                    argv=[wanted.enclave, *wanted.args],
                    env=wanted.env,
                    shared=wanted.shared,
                ),
                io_files,
                generation=1,
            )
            self._enclave.arena.rt_state["tracker"] = Wanted[wanted.tracker.upper()]
        finally:
            self._busy = False
        enclave = self._enclave
        self._nursery.start_soon(self._tell_exit, enclave)
        self._log.info("enclave_launched", enclave=wanted.enclave, pid=enclave.process.pid)
        return {**status.describe(enclave), "pid": enclave.process.pid}

    def _claim(self) -> None:
        if self._enclave is not None or self._migration is not None or self._busy:
            raise EnclaveError("this agent has an enclave already")
        self._busy = True

    async def _tell_exit(self, enclave: Enclave) -> None:
        """Report the program's end, unless it ended because it moved or never ran here."""
        process = enclave.process
        await process.exited.wait()
        if enclave is not self._here() or process.released or not process.ran:
            return
        self._exit_status = process.exit_status
        self._log.info("program_exited", exit_status=self._exit_status)
        with suppress(ChannelClosed):  # the next daemon is told when it connects
            await self._server.send("exited", {"exit_status": self._exit_status})
        await self._idle.wait()
        await trio.to_thread.run_sync(enclave.arena.close)

    def _here(self) -> Enclave | None:
        """The instance that this agent has the right to run, if it has one."""
        part = self._migration
        return part.enclave if part is not None and part.arrived else self._enclave

    def _running(self) -> Enclave:
        enclave = self._here()
        if enclave is None or enclave.process.exited.is_set() or enclave.process.released:
            raise EnclaveError("no program runs here")
        return enclave

    # ---- migrations ----

    async def _receive(self, params: Params, fd: int) -> Params:
        wanted = requests.read_params(params, requests.Receive)
        self._claim()
        try:
            identity = await identify(wanted.enclave, wanted.image, wanted.policy, self._platform)
            orders = ReceiveOrders(
                binding=Binding(wanted.migration_id, wanted.source_host, wanted.destination_host),
                generation=wanted.generation,
                memory_bytes=-(-wanted.memory_bytes // abi.PAGE_BYTES) * abi.PAGE_BYTES,
                streams=wanted.streams,
                dry_run=wanted.dry_run,
                virtual_dir=wanted.own_dir or DEFAULT_OWN_DIR,
            )

            async def prepare() -> Enclave:
                return await self._prepare(identity, orders)

            migration = Destination(
                identity,
                orders,
                prepare,
                self._replace,
                self._digests,
                self._memory,
                self._emitter(wanted.migration_id),
                self._log.bind(migration_id=wanted.migration_id.hex(), role="destination"),
            )
            self._begin(migration)
        finally:
            self._busy = False
        return {
            "measurement": identity.measurement.hex(),
            "platform": self._platform.name,
            "tracker": "kernel",
        }

    async def _prepare(self, identity: Identity, orders: ReceiveOrders) -> Enclave:
        """The new instance's directories, memory and waiting process."""
        own_dir = self._directory / "own"
        own_dir.mkdir(mode=0o700)
        io_files = {name: self._directory / name for name in ("output.log", "stdin")}
        for path in io_files.values():
            # They exist before the process opens them; what they hold arrives later.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        enclave = await self._maker.start(
            identity,
            Mode.RESTORE,
            orders.memory_bytes,
            Start(
                name=identity.name,
                own_dir=own_dir,
                output=io_files["output.log"],
                stdin=io_files["stdin"],
                virtual_dir=orders.virtual_dir,
            ),
            io_files,
            generation=orders.generation,
        )
        self._nursery.start_soon(self._tell_exit, enclave)
        return enclave

    async def _replace(self, enclave: Enclave) -> None:
        await self._maker.replace(enclave)
        self._nursery.start_soon(self._tell_exit, enclave)

    async def _export(self, params: Params, fd: int) -> Params:
        wanted = requests.read_params(params, requests.Export)
        enclave = self._running()
        if not self._idle.is_set():
            raise AlreadyMigrating("another migration of this enclave is in progress")
        if enclave.process.state is not RtState.RUNNING:
            raise EnclaveError(f"the program is {enclave.process.state.name.lower()}, not running")
        orders = ExportOrders(
            binding=Binding(wanted.migration_id, wanted.source_host, wanted.destination_host),
            mode=wanted.mode,
            streams=wanted.streams,
            downtime_limit_ms=wanted.downtime_limit_ms,
            max_bandwidth=wanted.max_bandwidth,
            on_stall=wanted.on_stall,
            verify=wanted.verify,
            timeout_s=wanted.timeout_s,
            dry_run=wanted.dry_run,
            switchover_stall_s=wanted.switchover_stall_s,
            ask_for_turn=wanted.ask_for_turn,
        )
        self._enclave = enclave
        self._begin(
            Source(
                enclave,
                orders,
                self._memory,
                self._emitter(wanted.migration_id),
                self._log.bind(migration_id=wanted.migration_id.hex(), role="source"),
            )
        )
        return {}

    def _begin(self, migration: Part) -> None:
        self._migration = migration
        self._move_gate()
        self._idle = trio.Event()
        self._nursery.start_soon(self._carry_through, migration)

    async def _carry_through(self, migration: Part) -> None:
        try:
            await migration.run()
        except Exception:  # an agent holds an enclave: a migration that fails may not end it
            self._log.exception("migration_failed_unexpectedly")
        finally:
            self._idle.set()

    def _emitter(self, migration_id: bytes) -> Emit:
        async def emit(event: str, params: Params) -> None:
            try:
                await self._server.send(event, {"migration_id": migration_id, **params})
            except ChannelClosed:
                if event in MUST_ARRIVE:
                    raise
                self._log.info("event_not_delivered", event_name=event)

        return emit

    def _find(self, migration_id: bytes) -> Part:
        migration = self._migration
        if migration is None or migration.binding.migration_id != migration_id:
            raise EnclaveError(f"no migration {migration_id.hex()} is under way here")
        return migration

    def _find_for(self, params: Params) -> Part:
        return self._find(requests.read_params(params, requests.Which).migration_id)

    async def _add_stream(self, params: Params, fd: int) -> Params:
        try:
            wanted = requests.read_params(params, requests.AddStream)
            migration = self._find(wanted.migration_id)
        except OptmigError:
            os.close(fd)
            raise
        migration.streams.add(wanted.index, fd)
        return {}

    async def _cancel(self, params: Params, fd: int) -> Params:
        migration = self._find_for(params)
        migration.cancel()
        await migration.announcer.repeat_end()  # where it had ended before
        return {}

    async def _link_lost(self, params: Params, fd: int) -> Params:
        self._find_for(params).link_lost()
        return {}

    async def _set(self, params: Params, fd: int) -> Params:
        wanted = requests.read_params(params, requests.Change)
        return self._find(wanted.migration_id).change_orders(
            downtime_limit_ms=wanted.downtime_limit_ms,
            max_bandwidth=wanted.max_bandwidth,
            on_stall=wanted.on_stall,
        )

    async def _take_turn(self, params: Params, fd: int) -> Params:
        self._find_for(params).take_turn()
        return {}

    # ---- questions and the end ----

    async def _status(self, params: Params, fd: int) -> Params:
        enclave = self._here()
        if enclave is None:
            part = self._migration
            receiving = part is not None and part.migration.role is Role.DESTINATION
            waiting = receiving and not self._idle.is_set()
            return status.nobody(self._platform, "waiting" if waiting else "booting")
        return await trio.to_thread.run_sync(status.of_enclave, enclave, self._exit_status)

    async def _sample_dirty(self, params: Params, fd: int) -> Params:
        wanted = requests.read_params(params, requests.Sample)
        enclave = self._running()
        if not self._idle.is_set():
            raise AlreadyMigrating("its dirty pages are being tracked by a migration")
        if why := trackers.missing(enclave)[1]:
            raise TrackerUnavailable(why)
        self._idle = trio.Event()
        try:
            sample = await sample_dirty(enclave, wanted.interval_s)
        finally:
            self._idle.set()
        return sample.fields()

    async def _stop(self, params: Params, fd: int) -> Params:
        enclave = self._here()
        if enclave is None:
            raise EnclaveError("no program runs here")
        enclave.process.kill()
        await enclave.process.exited.wait()
        return {"exit_status": enclave.process.exit_status}

    async def _shutdown(self, params: Params, fd: int) -> Params:
        return {}  # it ends when this was answered
