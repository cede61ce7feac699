"""The enclaves of this host: every stay, its directory, its shim agent and its state.

An enclave may come, go and come again. Each time it is here is one *instance*, with a directory of
its own. The latest instance speaks for the enclave: while it runs here, after it has ended, and
after it has moved away, until it comes again.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog
import trio

from optmigd.daemon.agents import Agent, find_agent
from optmigd.daemon.journal import InstanceRow, Journal, MigrationRow
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.spawn import EnclaveUser, start_agent
from optmigd.protocol.errors import EnclaveError, OptmigError, UnknownEnclave
from optmigd.protocol.recovery import exit_ends_enclave

LIVE_STATES = frozenset({"starting", "incoming", "running"})
_ENCLAVE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEPT_FILES = frozenset({"agent.log", "agent.err"})
STATUS_TIMEOUT_S = 5.0


class Activity(Protocol):
    """What the registry knows of a migration that an instance takes part in."""

    record: MigrationRecord

    @property
    def migration_id(self) -> bytes:
        """16 random bytes."""

    @property
    def under_way(self) -> bool:
        """Whether its agents have work to do; false while it waits in the queue."""

    @property
    def released(self) -> bool:
        """Whether the right to execute may have left this host."""


@dataclass
class Instance:
    """One stay of an enclave on this host."""

    row: InstanceRow
    directory: Path
    agent: Agent | None = None
    migration: Activity | None = None
    last_migration: MigrationRecord | None = None
    last_status: dict[str, Any] = field(default_factory=dict)

    @property
    def enclave(self) -> str:
        """The enclave's id."""
        return self.row.enclave

    @property
    def output(self) -> Path:
        """The program's output during this stay."""
        return self.directory / "output.log"

    @property
    def own_directory(self) -> Path:
        """Where the enclave's own files are on this host."""
        chosen = self.row.facts.get("own_dir_here")
        return Path(chosen) if chosen else self.directory / "own"

    def live_agent(self) -> Agent:
        """Return the shim agent.

        Raises:
            EnclaveError: there is none any more.
        """
        if self.agent is None:
            raise EnclaveError(f"enclave {self.enclave!r} has no running shim agent on this host")
        return self.agent

    async def agent_status(self) -> dict[str, Any]:
        """Ask the agent how the enclave is; the last known answer where it does not say."""
        if self.agent is not None and not self.agent.gone.is_set():
            with contextlib.suppress(OptmigError):
                self.last_status = await self.agent.request("status", timeout_s=STATUS_TIMEOUT_S)
        return self.last_status


def check_enclave_id(enclave: str) -> str:
    """Return a valid id; a made-up one for the empty text.

    Raises:
        EnclaveError: it has other characters than a directory name may have.
    """
    if not enclave:
        return f"e-{secrets.token_hex(4)}"
    if not _ENCLAVE_ID.fullmatch(enclave):
        raise EnclaveError(
            "expected an enclave id of up to 63 letters, digits, '.', '_' and '-', beginning with "
            f"a letter or digit, found {enclave!r}"
        )
    return enclave


class Registry:
    """All instances; the only place that starts agents or changes an instance's state."""

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        nursery: trio.Nursery,
        agent_command: Sequence[str],
        enclave_user: EnclaveUser | None,
    ) -> None:
        """Begin empty; `Host.adopt` fills it from the journal.

        Args:
            directory: STATE_DIR/enclaves.
            journal: where every change of state is written first.
            nursery: in which agents are supervised, and which leaves them running at its end.
            agent_command: how to start a shim agent.
            enclave_user: whom enclaves run as; None: as the daemon.
        """
        self._directory = directory
        self._journal = journal
        self._nursery = nursery
        self._agent_command = agent_command
        self._user = enclave_user
        self._stays: dict[str, list[Instance]] = {}
        self._changed = trio.Event()
        self._log = structlog.get_logger()

    def __iter__(self) -> Iterator[Instance]:
        """Iterate over the instance that speaks for each enclave, sorted by id."""
        for enclave in sorted(self._stays):
            found = self.find(enclave)
            if found is not None:
                yield found

    def stays(self, enclave: str) -> list[Instance]:
        """Return the stays of an enclave, oldest first; one that is coming in is not yet one."""
        return [stay for stay in self._stays.get(enclave, []) if stay.row.state != "incoming"]

    def find(self, enclave: str) -> Instance | None:
        """Return the instance that speaks for an enclave, None if there is none.

        One that is still coming in speaks only where there never was another.
        """
        all_stays = self._stays.get(enclave, [])
        stays = self.stays(enclave) or all_stays
        return stays[-1] if stays else None

    def current(self, enclave: str) -> Instance:
        """Return the instance that speaks for an enclave.

        Raises:
            UnknownEnclave: this host has never had it.
        """
        found = self.find(enclave)
        if found is None:
            raise UnknownEnclave(
                f"this host has no enclave {enclave!r}: `optmigctl list` shows those it has",
                enclave=enclave,
            )
        return found

    def live(self) -> list[Instance]:
        """Return every instance that has, or is about to have, a running agent."""
        return [
            stay
            for stays in self._stays.values()
            for stay in stays
            if stay.row.state in LIVE_STATES
        ]

    def leaving(self) -> bool:
        """Whether the agent of an enclave that is here no longer has yet to end."""
        return any(
            stay.agent is not None and not stay.agent.gone.is_set()
            for stays in self._stays.values()
            for stay in stays
            if stay.row.state not in LIVE_STATES
        )

    @property
    def next_change(self) -> trio.Event:
        """Set at the next change of any instance's state."""
        return self._changed

    async def wait_change(self) -> None:
        """Return after the next change of any instance's state."""
        await self._changed.wait()

    def announce_change(self) -> None:
        """Wake everyone who waits for a change."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def restore(self, row: InstanceRow) -> Instance:
        """Take an instance from the journal, without its agent."""
        instance = Instance(row, self._path(row.enclave, row.number))
        self._stays.setdefault(row.enclave, []).append(instance)
        return instance

    async def create(
        self,
        enclave: str,
        *,
        state: str,
        generation: int,
        facts: dict[str, Any],
        came_from: bytes | None = None,
    ) -> Instance:
        """Journal a new instance and make its directory."""
        stays = self._stays.setdefault(enclave, [])
        number = stays[-1].row.number + 1 if stays else 1
        while self._path(enclave, number).exists():
            number += 1
        row = InstanceRow(enclave, number, state, generation, facts=facts, came_from=came_from)
        instance = Instance(row, self._path(enclave, number))
        stays.append(instance)
        try:
            await self._journal.save_instance(row)
            instance.directory.mkdir(mode=0o700)
            if self._user is not None:
                os.chown(instance.directory, self._user.uid, self._user.gid)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.destroy(instance)
            raise
        return instance

    async def start(self, instance: Instance) -> Agent:
        """Start the instance's agent and supervise it.

        Raises:
            RuntimeFailed: it did not become ready.
        """
        process = await start_agent(self._agent_command, instance.directory, self._user)
        return self._supervise(instance, process)

    async def adopt(self, instance: Instance) -> Agent | None:
        """Find the instance's running agent; None if it has ended. `supervise` then connects."""
        process = await find_agent(instance.directory)
        return None if process is None else self._attach(instance, process)

    def supervise(self, agent: Agent) -> None:
        """Connect to an adopted agent, after whoever must miss no event has subscribed."""
        self._nursery.start_soon(agent.run)

    async def running(self, instance: Instance, arrival: MigrationRow | None = None) -> None:
        """Journal that this host owns the enclave, as the instance's row says.

        Args:
            instance: launched, or just resumed.
            arrival: the migration that brought it: journaled in the same step, however long that
                takes, because the enclave runs here already.

        Raises:
            JournalFailed: of a launch.
        """
        row = dataclasses.replace(instance.row, state="running")
        if arrival is None:
            await self._journal.save_instance(row)
        else:
            await self._journal.insist(lambda: self._journal.save_handover(row, arrival))
        instance.row.state = "running"
        if instance.agent is not None and instance.agent.exit_reported:
            with trio.CancelScope(shield=True):
                await self.exited(instance, instance.agent.exit_status)
        self.announce_change()

    async def forget_older(self, instance: Instance) -> None:
        """Remove what earlier stays of the same enclave have left."""
        for older in self.stays(instance.enclave):
            if older.row.generation < instance.row.generation:
                await self.destroy(older)

    async def moved(self, instance: Instance, departure: MigrationRow) -> None:
        """Journal that a peer owns the enclave now, and the migration; `clear` must follow.

        In one step: a crash must leave no stay that looks as if the program still ran here.
        """
        await self._depart(instance, "moved", departure)

    async def lost(self, instance: Instance, departure: MigrationRow) -> None:
        """Journal that the enclave was released and nobody delivers its token any more.

        It may run at the peer or nowhere, and never again here: the agent is ended.
        """
        await self._depart(instance, "lost", departure)
        if instance.agent is not None and not instance.agent.gone.is_set():
            self._nursery.start_soon(instance.agent.shut_down)

    async def _depart(self, instance: Instance, state: str, departure: MigrationRow) -> None:
        row = instance.row
        row.state = state
        row.moved_to = departure.peer_key
        row.since_s = departure.released_s
        row.migration_id = departure.migration_id
        await self._journal.insist(lambda: self._journal.save_handover(row, departure))
        self.announce_change()

    async def clear(self, instance: Instance) -> None:
        """End the agent of an enclave that has moved away, and keep nothing but the agent's logs.

        The program's output has moved with it.
        """
        if instance.agent is not None:
            await instance.agent.shut_down()
            instance.agent = None
        await trio.to_thread.run_sync(_remove_all_but_logs, instance.directory)

    async def destroy(self, instance: Instance) -> None:
        """End an instance that never ran here, or that a later one replaces, and every trace."""
        if instance.agent is not None:
            await instance.agent.shut_down()
            instance.agent = None
        stays = self._stays.get(instance.enclave, [])
        if instance in stays:
            stays.remove(instance)
        if not stays:
            self._stays.pop(instance.enclave, None)
        await self._journal.write_soon(self._nursery, lambda: self._forget(instance.row))
        self.announce_change()
        await trio.to_thread.run_sync(_remove_tree, instance.directory)

    async def _forget(self, row: InstanceRow) -> None:
        stays = self._stays.get(row.enclave, [])
        if row.number not in [stay.row.number for stay in stays]:  # the number is not in use again
            await self._journal.delete_instance(row.enclave, row.number)

    async def remove_strays(self) -> None:
        """End agents and directories that the journal does not know."""
        known = {stay.directory for stays in self._stays.values() for stay in stays}
        for directory in sorted(set(self._directory.iterdir()) - known):
            process = await find_agent(directory)
            if process is not None:
                process.kill()
                await process.wait()
            await trio.to_thread.run_sync(_remove_tree, directory)
            self._log.info("stray_instance_removed", directory=directory.name)

    def _path(self, enclave: str, number: int) -> Path:
        return self._directory / f"{enclave}@{number}"

    def _supervise(self, instance: Instance, process: Any) -> Agent:
        agent = self._attach(instance, process)
        self.supervise(agent)
        return agent

    def _attach(self, instance: Instance, process: Any) -> Agent:
        async def on_exited(status: int | None) -> None:
            if instance.row.state == "running":
                await self.exited(instance, status)

        log = self._log.bind(enclave=instance.enclave)
        instance.agent = Agent(instance.directory, process, log, on_exited)
        return instance.agent

    async def exited(self, instance: Instance, status: int | None) -> None:
        """Journal that the program has ended here; None: nobody knows how."""
        activity = instance.migration
        if activity is not None and not exit_ends_enclave(released=activity.released):
            return  # What runs now runs elsewhere; this end of the agent says nothing about it.
        instance.row.state = "exited"
        instance.row.exit_status = status
        row = instance.row
        await self._journal.write_soon(self._nursery, lambda: self._journal.save_instance(row))
        self._log.info("enclave_exited", enclave=instance.enclave, exit_status=status)
        self.announce_change()
        if instance.agent is not None and not instance.agent.gone.is_set():
            self._nursery.start_soon(instance.agent.shut_down)


def _remove_all_but_logs(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # the enclave is back already: nothing is kept
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in _KEPT_FILES:
                path.unlink()


def _remove_tree(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
