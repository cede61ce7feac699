"""An outgoing migration from the request to the receipt.

Before the release every failure, cancel or time-out ends with the program running here again; after
it this module only delivers, until the destination has confirmed. The order at the point of no
return is: the agent says `release`, the token is on disk, the token is on the wire.

One task runs `OutgoingMigration.run` in the daemon's nursery; clients only watch it, so none of
them can end it by going away.
"""

import dataclasses
import secrets
from collections.abc import Awaitable, Callable

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.admission import only_busy
from optmigd.daemon.answers import Params, internal_error, mapping
from optmigd.daemon.delivery import deliver_until_confirmed
from optmigd.daemon.departures import Place, WaitsFor
from optmigd.daemon.host import Host, now_s
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.nurseries import first_of, open_flat_nursery
from optmigd.daemon.outcomes import report_of, why_not_moved
from optmigd.daemon.queueing import peer_after_queue, program_ended
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.registry import Instance
from optmigd.daemon.source import Attempt, Hooks, MigrateOptions
from optmigd.daemon.turn_taking import SwitchoverTurn
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import (
    AlreadyReleased,
    HandoffUncertain,
    MigrationBlocked,
    MigrationCancelled,
    MigrationFailed,
    MigrationTimeout,
    OptmigError,
    to_wire,
)
from optmigd.protocol.link import Finished
from optmigd.protocol.recovery import must_deliver

STOP_WITHDRAW_S = 5.0
"""How long a daemon that is told to stop waits for agents to resume their programs."""
RESTORED_ENDED_TIMEOUT_S = 2.0
UNCERTAIN_AFTER_S = 60.0
"""How long a caller without a time-out waits for the confirmation of a release."""
UNCERTAIN_LEAST_S = 5.0
_RESTORED = MigrateOptions("precopy", 0.0, 0, 1, 0.0, "abort", verify=False, dry_run=False)


class OutgoingMigration:
    """One migration of an enclave of this host to a peer. `done` is set when it has ended."""

    def __init__(
        self,
        host: Host,
        instance: Instance,
        peer: Peer,
        options: MigrateOptions,
        row: MigrationRow | None = None,
    ) -> None:
        """Prepare it.

        Args:
            host: this host.
            instance: a running enclave.
            peer: where it is to go.
            options: how.
            row: of a migration that a stop of the daemon interrupted; None: a new one.
        """
        self.done = trio.Event()
        self.error: OptmigError | None = None
        self._host = host
        self._instance = instance
        self._peer = peer
        self._options = options
        self._row = row or MigrationRow(
            secrets.token_bytes(16),
            instance.enclave,
            instance.row.number,
            "source",
            peer.key,
            instance.row.generation,
            "active",
            now_s(),
        )
        self.record = MigrationRecord(
            self._row.migration_id,
            instance.enclave,
            "source",
            peer.name,
            source=host.name,
            destination=peer.name,
            mode=str(self._row.result.get("mode", options.mode)),
            publish=host.hub.publish,
            dry_run=options.dry_run,
            platform=str(instance.row.facts.get("platform", "")),
        )
        self._log: structlog.stdlib.BoundLogger = host.log.bind(
            migration_id=self.migration_id.hex(),
            enclave=instance.enclave,
            role="source",
            peer=peer.name,
        )
        self.record.settings = options.changeable()
        self._place: Place | None = None
        self._turn = SwitchoverTurn(host, peer, self.migration_id, self._log)
        self._attempt = self._new_attempt()
        self._attempt.token = self._row.token
        self._started_at = trio.current_time()
        self._scope = trio.CancelScope()
        if options.timeout_s:
            self._scope.deadline = self._started_at + options.timeout_s
        self._cancel_asked = False
        self._released = trio.Event()
        self._uncertain_at = float("inf")
        self._delivery_scope = trio.CancelScope()

    @classmethod
    def restored(
        cls, host: Host, instance: Instance, peer: Peer, row: MigrationRow
    ) -> "OutgoingMigration":
        """Take up an interrupted migration, before its agent is connected; then `run_restored`."""
        migration = cls(host, instance, peer, _RESTORED, row)
        if instance.agent is not None:
            migration._attempt.subscribe(instance.agent)
        return migration

    def _new_attempt(self) -> Attempt:
        return Attempt(
            self._host,
            self._instance,
            self._peer,
            self._options,
            self.migration_id,
            self.record,
            self._log,
            Hooks(accepted=self._accepted, converged=self._converged),
        )

    @property
    def migration_id(self) -> bytes:
        """16 random bytes."""
        return self._row.migration_id

    @property
    def peer_key(self) -> bytes:
        """The destination's host key."""
        return self._peer.key

    @property
    def under_way(self) -> bool:
        """Whether it has a slot, or needs none."""
        return self.record.dry_run or (self._place is not None and self._place.holds)

    @property
    def released(self) -> bool:
        """Whether the point of no return is past."""
        return must_deliver(self._attempt.token)

    @property
    def released_s(self) -> float:
        """The time of day of the release; 0 before it."""
        return self._row.released_s

    async def run(self) -> None:
        """Migrate; an error is kept in `error`.

        Cancelled (the daemon stops): before the release the agent is told to resume the program,
        for at most STOP_WITHDRAW_S; after it the journal knows what to deliver at the next start.
        """
        await self._guarded(self._run_new)

    async def run_restored(self) -> None:
        """Go on after a restart of the daemon, as `run`."""
        await self._guarded(self._run_restored)

    async def wait_result(self) -> Params:
        """Wait for the outcome and return the object of `migrate --json`.

        Raises:
            OptmigError: the migration did not happen; field `migration` has the object.
            HandoffUncertain: released, but not confirmed within the caller's time; it goes on.
        """
        await first_of(self.done.wait, self._wait_uncertain)
        if not self.done.is_set():
            raise HandoffUncertain(
                f"enclave {self.record.enclave!r} was released to host {self._peer.name}, which "
                "has not confirmed; the token is delivered again until it does. "
                f"`optmigctl status {self.record.enclave}` tells how it stands",
                migration=self.record.result(),
            )
        if self.error is not None:
            result = self.record.result()
            result.pop("error", None)
            self.error.fields["migration"] = result
            raise self.error
        return self.record.result()

    async def wait_checked(self) -> tuple[list[Blocker], Params]:
        """Wait for a dry run and return its blockers and its forecast.

        Raises:
            OptmigError: it could not be held.
        """
        await self.done.wait()
        if isinstance(self.error, MigrationBlocked):
            return self.error.blockers, {}
        if self.error is not None:
            raise self.error
        return [], mapping(self.record.report.get("forecast") or {}, "forecast")

    async def cancel(self) -> Params:
        """Cancel, and return when the program runs again.

        Raises:
            AlreadyReleased: it is too late.
        """
        if not self.released:
            self._cancel_asked = True
            self.record.set_state("cancelling")
            self._scope.cancel()
            await first_of(self.done.wait, self._released.wait)
        if self.released:
            raise AlreadyReleased(
                f"enclave {self.record.enclave!r} has been released to host {self._peer.name}: "
                "the move can only be completed. If that host is gone, "
                f"`optmigctl recover {self.record.enclave}` shows the choices",
                migration_id=self.migration_id.hex(),
            )
        return {"migration_id": self.migration_id.hex(), "state": self.record.state}

    async def change(self, changes: Params) -> Params:
        """Change what the migration was told when it began.

        Args:
            changes: any of `downtime_limit_ms`, `max_bandwidth` and `on_stall`.

        Returns:
            All three as they are now.

        Raises:
            AlreadyReleased: it is too late.
            EnclaveError: it has just ended.
        """
        if self.released:
            raise AlreadyReleased(
                f"enclave {self.record.enclave!r} has been released to host {self._peer.name}: "
                "nothing is left to change",
                migration_id=self.migration_id.hex(),
            )
        options = dataclasses.replace(self._options, **changes)
        await self._attempt.change(options, changes)
        self._options = options
        self.record.change_settings(options.changeable())
        self._log.info("settings_changed", **changes)
        return {"migration_id": self.migration_id.hex(), **options.changeable()}

    async def give_up(self) -> None:
        """Stop delivering: an operator's decision, when the destination is lost for good."""
        self._delivery_scope.cancel()
        await self.done.wait()

    async def _guarded(self, body: Callable[[], Awaitable[None]]) -> None:
        self._instance.migration = self
        self._host.registry.announce_change()
        self._log.info("migration_started", mode=self.record.mode, dry_run=self.record.dry_run)
        try:
            await body()
        except trio.Cancelled:
            if not self.released:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_WITHDRAW_S):
                    error = MigrationFailed("the daemon was stopped during the migration")
                    await self._attempt.withdraw()
                    if not self.released:
                        await self._fail(error)
            raise
        except Exception:
            # The journal has what matters; a mistake in one migration must not end the daemon.
            self._log.exception("migration_crashed")
            self.error = internal_error()
            self.record.finish("failed", to_wire(self.error))
        finally:
            self._leave()
            with trio.CancelScope(shield=True):
                await self._attempt.close()
            self.done.set()
            self._host.registry.announce_change()

    def _leave(self) -> None:
        """Let the instance take part in another migration."""
        if self._instance.migration is self:
            self._instance.migration = None
            if not self.record.dry_run:
                self._instance.last_migration = self.record

    async def _run_new(self) -> None:
        async with open_flat_nursery() as self._helpers:
            await self._move()
            self._helpers.cancel_scope.cancel()

    async def _move(self) -> None:
        error: OptmigError | None = None
        with self._scope:
            try:
                if not self.record.dry_run:
                    await self._save("active")
                    await self._run_in_turn()
                else:
                    await self._attempt.run()
            except OptmigError as found:
                error = found
        if self._scope.cancelled_caught:
            error = self._why_cancelled()
        if error is not None and not self.released and self._attempt.ended is None:
            await self._attempt.withdraw()
        if self.released:
            await self._complete()
        else:
            self._turn.give_back()
            await self._settle(error)

    async def _run_in_turn(self) -> None:
        """Wait for a slot, and migrate; once more from the queue when the destination is full."""
        place = self._place = self._host.departures.join(self._peer.key, self._stand_in_queue)
        try:
            while True:
                await first_of(place.turn, lambda: program_ended(self._host, self._instance))
                self.record.queued_time_ms = 1000 * (trio.current_time() - self._started_at)
                self._host.registry.announce_change()  # it is under way
                await self._host.turns.let_pass(self.migration_id)
                peer = peer_after_queue(self._host, self._instance, self._peer)
                if peer != self._peer:
                    self._peer = peer
                    self._attempt = self._new_attempt()
                try:
                    await self._attempt.run()
                    return
                except MigrationBlocked as error:
                    if not only_busy(error.blockers):
                        raise
                self._log.info("destination_busy")
                await self._attempt.close()
                self._attempt = self._new_attempt()
                place.turned_away()
        finally:
            place.leave()

    def _stand_in_queue(self, position: int, waits_for: WaitsFor) -> None:
        host = self._host.name if waits_for == "slot" else self._peer.name
        self.record.stand_in_queue(position, host)

    def _accepted(self) -> None:
        if self._place is not None:
            self._place.accepted()

    def _converged(self) -> None:
        if self._instance.agent is not None:
            self._helpers.start_soon(self._turn.take, self._instance.agent)

    async def _run_restored(self) -> None:
        if not self.released:
            error = MigrationFailed("the daemon was stopped during the migration")
            await self._attempt.withdraw(ended_timeout_s=RESTORED_ENDED_TIMEOUT_S)
        if self.released:
            await self._complete()
        else:
            await self._settle(error)

    async def _settle(self, error: OptmigError | None) -> None:
        """Conclude a migration that released nothing."""
        ended = self._attempt.ended or {}
        self.record.report = report_of(ended)
        known = self._attempt.blockers
        error = why_not_moved(
            self._instance.row, self._peer, ended, known, error, dry_run=self.record.dry_run
        )
        if error is None:
            self.record.finish("completed")
        else:
            await self._fail(error)

    async def _fail(self, error: OptmigError) -> None:
        state = "cancelled" if isinstance(error, MigrationCancelled) else "failed"
        await self._conclude(state, error)
        if not self.record.dry_run:
            await self._host.journal.write_soon(self._host.nursery, lambda: self._save(state))

    async def _conclude(self, state: str, error: OptmigError) -> None:
        """Tell everyone but the journal."""
        self.error = error
        await self._attempt.abort(error)
        self._log.warning(f"migration_{state}", code=error.code, error=error.message)
        self.record.finish(state, to_wire(error))

    async def _complete(self) -> None:
        """Conclude a migration whose enclave was released: deliver until it is confirmed."""
        self._row.token = self._attempt.token
        self._row.released_s = self._row.released_s or now_s()
        self._uncertain_at = self._when_uncertain()
        self._released.set()
        # The program stands still: what can wait until the token is on its way does.
        journal, send = self._host.journal, self._attempt.send_token_to_shim
        await journal.insist(lambda: journal.save_migration(self._row, then=send))
        with self._delivery_scope:
            async with open_flat_nursery() as nursery:
                if self._instance.agent is not None:
                    nursery.start_soon(self._attempt.listen)
                assert self._row.token is not None
                self._row.resumed = await deliver_until_confirmed(
                    self._host,
                    self._peer,
                    self._instance,
                    self._attempt,
                    self._row.token,
                    self._log,
                    tried=self._tell_released,
                )
                nursery.cancel_scope.cancel()
        if self._delivery_scope.cancelled_caught:
            self._turn.give_back()
            await self._abandon_delivery()
            return
        self.record.report = report_of(self._attempt.ended)
        self.record.finish("completed")
        self._fill_row("completed")
        await self._host.registry.moved(self._instance, self._row)
        self._log.info("migration_completed", downtime_ms=self.record.report.get("downtime_ms"))
        if self._attempt.link is not None:
            try:
                await self._attempt.link.send(Finished("completed"))
            except OptmigError as error:
                self._log.debug("finished_not_sent", error=error.message)
        self._leave()
        self.done.set()
        self._turn.give_back()
        await self._host.turns.let_pass(self.migration_id)
        await self._host.registry.clear(self._instance)

    def _tell_released(self) -> None:
        self._log.info("enclave_released")
        self.record.set_state("switchover")

    async def _abandon_delivery(self) -> None:
        await self._conclude(
            "failed",
            HandoffUncertain(
                f"an operator gave up the delivery of {self.record.enclave!r} to host "
                f"{self._peer.name}: it may run there or be lost"
            ),
        )
        self._leave()
        self._fill_row("failed")
        await self._host.registry.lost(self._instance, self._row)

    def _why_cancelled(self) -> OptmigError:
        if self._cancel_asked:
            return MigrationCancelled(
                f"the migration of {self.record.enclave!r} was cancelled; it runs on here"
            )
        return MigrationTimeout(
            f"the migration of {self.record.enclave!r} took longer than "
            f"{self._options.timeout_s:g} s; it runs on here"
        )

    def _when_uncertain(self) -> float:
        now = trio.current_time()
        if self._options.timeout_s:
            deadline = self._started_at + self._options.timeout_s
            return max(deadline, now + UNCERTAIN_LEAST_S)
        return now + UNCERTAIN_AFTER_S

    async def _wait_uncertain(self) -> None:
        await self._released.wait()
        await trio.sleep_until(self._uncertain_at)

    async def _save(self, state: str) -> None:
        self._fill_row(state)
        await self._host.journal.save_migration(self._row)

    def _fill_row(self, state: str) -> None:
        self._row.state = state
        self._row.result = self.record.result() | {"receipt": self.record.report.get("receipt")}
