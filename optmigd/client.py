"""Asking a daemon from trio code.

`Client` holds no connection and needs no closing: every call opens one of its own and closes it,
so calls run at the same time as they please. Cancelling any call closes its connection. What it
asked for is then neither undone nor known to be done; in particular **a migration goes on** when
the call that started it is cancelled: `cancel` ends a migration.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import trio

from optmigd import answers, requests
from optmigd.config import find_socket
from optmigd.conversation import Conversation, unreachable
from optmigd.requests import Decision, Mode, OnStall, StrPath

_RECEIVE_BYTES = 65536


class Reply:
    """The answer to one request: an async iterator of its events, then a `result`."""

    def __init__(self, stream: trio.SocketStream, conversation: Conversation) -> None:
        """Use `Client.open`."""
        self._stream = stream
        self._conversation = conversation
        self._events: deque[dict[str, Any]] = deque()

    def __aiter__(self) -> "Reply":
        """Return itself: events can be taken once."""
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Wait for the next event.

        Raises:
            StopAsyncIteration: the outcome has arrived; ask `result`.
            DaemonUnreachable: the daemon went away.

        Cancellation: loses no event; iterate again to go on.
        """
        while not self._events and not self._conversation.done:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except trio.BrokenResourceError:
                data = b""
            self._events.extend(self._conversation.receive_data(data))
        if self._events:
            return self._events.popleft()
        raise StopAsyncIteration

    async def result(self) -> dict[str, Any]:
        """Wait for the outcome, leaving out the events that are still to come, and return it.

        Raises:
            OptmigError: what the daemon answered instead.
        """
        async for _ in self:
            pass
        return self._conversation.result()


class Client:
    """A daemon on this machine. Every method raises `DaemonUnreachable` if none answers."""

    def __init__(self, socket: StrPath | None = None) -> None:
        """Remember where the daemon listens; connects to nothing.

        Args:
            socket: its control socket; None for the one of this user's daemon.

        Raises:
            ConfigError: `socket` is None and the configuration that names it is wrong.
        """
        self.socket = find_socket() if socket is None else Path(socket)

    @asynccontextmanager
    async def open(self, method: str, params: dict[str, Any] | None = None) -> AsyncIterator[Reply]:
        """Send any request, and give its events and result; leaving the block ends the watching.

        Args:
            method: a method of the control socket.
            params: its parameters.

        Raises:
            DaemonUnreachable: no daemon answers.

        Cancellation: closes the connection.
        """
        conversation = Conversation(method, params or {})
        try:
            stream = await trio.open_unix_socket(self.socket)
        except OSError as error:
            raise unreachable(self.socket, error) from error
        async with stream:
            # A daemon that refuses this user hangs up early; what it said can still be read.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(conversation.request())
            yield Reply(stream, conversation)

    async def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send any request and return its result.

        Raises:
            OptmigError: what the daemon answered instead.
        """
        async with self.open(method, params) as reply:
            return await reply.result()

    async def ping(self) -> answers.Ping:
        """Return the daemon's name, version and platform."""
        return cast(answers.Ping, await self.call("ping"))

    async def launch(
        self,
        image: StrPath,
        *,
        enclave: str = "",
        memory_bytes: int = 0,
        dir: StrPath | None = None,
        shared: Sequence[StrPath] = (),
        policy: bytes = b"",
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        stdin: StrPath | None = None,
        tracker: requests.Tracker = "auto",
    ) -> answers.Launched:
        """Start an image as a new enclave.

        Args:
            image: a file made by `optmig-cc`.
            enclave: its name; the daemon makes one up if empty.
            memory_bytes: size of its arena; 0 for the daemon's default.
            dir: the enclave's own directory, which travels with it.
            shared: storage that both hosts see at the same path.
            policy: the owner's policy (TOML); empty for the default.
            env: environment of the program.
            args: arguments of the program, without its name.
            stdin: a file for its standard input.
            tracker: which tracker it is moved with, here and on every host after: the kernel's, or
                the marks of a program built with `optmig-cc --tracker=compiler`; "auto" is the
                kernel's where it has one.

        Raises:
            EnclaveExists: there is one of that name.
            ImageInvalid: the file is not an image.
            TrackerUnavailable: the kernel cannot track its memory.
        """
        params = requests.launch(
            image,
            enclave=enclave,
            memory_bytes=memory_bytes,
            dir=dir,
            shared=shared,
            policy=policy,
            env=env,
            args=args,
            stdin=stdin,
            tracker=tracker,
        )
        return cast(answers.Launched, await self.call("launch", params))

    async def list_enclaves(self) -> list[answers.Status]:
        """Return the status of every enclave that this host has or has had."""
        return cast(list[answers.Status], (await self.call("list"))["enclaves"])

    async def status(self, enclave: str) -> answers.Status:
        """Return the status of one enclave, wherever it is.

        Raises:
            UnknownEnclave: this host has never had it.
        """
        return cast(answers.Status, await self.call("status", {"enclave": enclave}))

    @asynccontextmanager
    async def logs(
        self, enclave: str, *, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the program's output from its beginning, in pieces, as an async iterator.

        Args:
            enclave: its name.
            follow: go on until the program has ended.

        Raises:
            UnknownEnclave: this host has never had it; raised by the iterator.
        """
        async with self.open("logs", {"enclave": enclave, "follow": follow}) as reply:
            yield _contents(reply)

    async def wait(self, enclave: str) -> answers.Exit:
        """Wait until the program has ended, on whichever host, and return how."""
        return cast(answers.Exit, await self.call("wait", {"enclave": enclave}))

    async def stop(self, enclave: str) -> answers.Exit:
        """End the program and return how it ended."""
        return cast(answers.Exit, await self.call("stop", {"enclave": enclave}))

    async def owner(self, enclave: str) -> answers.Owner:
        """Return who may run an enclave; asks along the way that it took.

        Raises:
            UnknownEnclave: this host has never had it.
        """
        return cast(answers.Owner, await self.call("owner", {"enclave": enclave}))

    async def recover(
        self,
        enclave_or_migration_id: str,
        *,
        decision: Decision | None = None,
        confirmed: bool = False,
    ) -> answers.Recovery:
        """Show a migration that hangs because its other host is gone, or settle it.

        Args:
            enclave_or_migration_id: of an enclave, its last migration is meant.
            decision: ``give-up`` at a source that has released, ``discard`` at a destination that
                waits for the token; either may lose the enclave. None: only show.
            confirmed: that this is meant; a decision is refused without it.

        Raises:
            MigrationError: there is no such migration, or nothing that the decision could settle.
            Unconfirmed: a decision without `confirmed`.
        """
        params = requests.which(enclave_or_migration_id)
        if decision is not None:
            params |= {"decision": decision, "confirmed": confirmed}
        return cast(answers.Recovery, await self.call("recover", params))

    async def forget(self, enclave: str) -> answers.Forgotten:
        """Remove the record and the files of an enclave that has ended here or moved away.

        Raises:
            UnknownEnclave: this host has never had it.
            EnclaveError, MigrationError: it runs here, is on its way here, or was released and
                nobody has confirmed.
        """
        return cast(answers.Forgotten, await self.call("forget", {"enclave": enclave}))

    async def check(self, enclave: str, host: str) -> answers.Check:
        """Ask both hosts whether a migration could start, and what it would take."""
        return cast(answers.Check, await self.call("check", {"enclave": enclave, "host": host}))

    async def migrate(
        self,
        enclave: str,
        host: str,
        *,
        mode: Mode = "precopy",
        downtime_limit_ms: float | None = None,
        max_bandwidth: int = 0,
        streams: int | None = None,
        timeout_s: float | None = None,
        on_stall: OnStall | None = None,
        verify: bool = False,
        detach: bool = False,
        on_event: Callable[[dict[str, Any]], object] | None = None,
    ) -> answers.Migration:
        """Move a running enclave to a peer, and return when it runs there.

        Args:
            enclave: its name.
            host: the peer's name.
            mode: ``precopy``, or ``stop-and-copy`` as a baseline.
            downtime_limit_ms: switch over when the expected downtime is at most this.
            max_bandwidth: bytes per second; 0 for no limit.
            streams: TCP connections for pages.
            timeout_s: give up after so long; 0 for no limit.
            on_stall: what to do when rounds stop shrinking.
            verify: compare both whole arenas while the enclave is parked; slow.
            detach: return as soon as the migration has started.
            on_event: called with every ``{"state": …}``, ``{"round": …}``, ``{"progress": …}``,
                ``{"queue": …}`` and ``{"settings": …}``.

        Raises:
            MigrationBlocked: it was not started; field `blockers` lists every reason.
            MigrationFailed, NotConverging, MigrationTimeout: the enclave runs on where it was.
            MigrationCancelled: somebody cancelled it; the enclave runs on where it was.
            HandoffUncertain: it was handed over, and nobody has confirmed that it runs.

        Cancellation: the migration goes on; ask `status`, or end it with `cancel`.
        """
        params = requests.migrate(
            enclave,
            host,
            mode=mode,
            downtime_limit_ms=downtime_limit_ms,
            max_bandwidth=max_bandwidth,
            streams=streams,
            timeout_s=timeout_s,
            on_stall=on_stall,
            verify=verify,
            detach=detach,
        )
        async with self.open("migrate", params) as reply:
            async for event in reply:
                if on_event is not None:
                    on_event(event)
            result = await reply.result()
        error = requests.failure(result)
        if error is not None:
            raise error
        return cast(answers.Migration, result)

    async def change(
        self,
        enclave_or_migration_id: str,
        *,
        downtime_limit_ms: float | None = None,
        max_bandwidth: int | None = None,
        on_stall: OnStall | None = None,
    ) -> answers.Changed:
        """Change a migration that is under way, or queued, on this host; None: as it is.

        Args:
            enclave_or_migration_id: which.
            downtime_limit_ms: switch over when the expected downtime is at most this.
            max_bandwidth: bytes per second; 0 for no limit.
            on_stall: what to do when rounds stop shrinking.

        Returns:
            The migration, and all three as they are now.

        Raises:
            MigrationError: no migration of it away from here is in progress.
            AlreadyReleased: too late, it has been handed over.
        """
        params = requests.change(
            enclave_or_migration_id,
            downtime_limit_ms=downtime_limit_ms,
            max_bandwidth=max_bandwidth,
            on_stall=on_stall,
        )
        return cast(answers.Changed, await self.call("set", params))

    async def cancel(self, enclave: str) -> answers.CancelAnswer:
        """Ask for the end of a migration; the enclave runs on where it was.

        Raises:
            AlreadyReleased: too late, it has been handed over.
        """
        return cast(answers.CancelAnswer, await self.call("cancel", {"enclave": enclave}))

    @asynccontextmanager
    async def watch(self, enclave: str = "") -> AsyncIterator[Reply]:
        """Give the events of the migrations of one enclave (of all, if empty), as they happen."""
        async with self.open("watch", {"enclave": enclave}) as reply:
            yield reply

    async def host_identity(self) -> answers.Identity:
        """Return the name, address and public key that peers need to know."""
        return cast(answers.Identity, await self.call("host_identity"))

    async def host_peers(self) -> list[answers.PeerAnswer]:
        """Return the pinned peers."""
        return cast(list[answers.PeerAnswer], (await self.call("host_peers"))["peers"])

    async def host_add(self, name: str, address: str, key: str) -> None:
        """Pin a peer, or replace the one of that name; takes effect at once and is kept."""
        await self.call("host_add", {"name": name, "address": address, "key": key})

    async def host_remove(self, name: str) -> None:
        """Forget a peer; takes effect at once and is kept."""
        await self.call("host_remove", {"name": name})

    async def receipt(self, enclave_or_migration_id: str) -> dict[str, Any]:
        """Return the signed receipt of a completed migration, or of an enclave's last one."""
        return await self.call("receipt", requests.which(enclave_or_migration_id))


async def _contents(reply: Reply) -> AsyncIterator[bytes]:
    async for event in reply:
        yield event["content"]
    await reply.result()
