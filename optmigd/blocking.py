"""Asking a daemon from code without trio: the same calls as `optmigd.client`, blocking.

`BlockingClient` holds no connection and needs no closing; every call opens one of its own. It may
be used from several threads at once. An exception that ends a call early (`KeyboardInterrupt`,
say) undoes nothing: **a migration goes on**, and `cancel` ends it.
"""

import socket as sockets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from optmigd import answers, requests
from optmigd.config import find_socket
from optmigd.conversation import Conversation, unreachable
from optmigd.requests import Decision, Mode, OnStall, StrPath

_RECEIVE_BYTES = 65536


class BlockingReply:
    """The answer to one request: an iterator of its events, then a `result`."""

    def __init__(self, connection: sockets.socket, conversation: Conversation) -> None:
        """Use `BlockingClient.open`."""
        self._connection = connection
        self._conversation = conversation
        self._events: deque[dict[str, Any]] = deque()

    def __iter__(self) -> "BlockingReply":
        """Return itself: events can be taken once."""
        return self

    def __next__(self) -> dict[str, Any]:
        """Wait for the next event.

        Raises:
            StopIteration: the outcome has arrived; ask `result`.
            DaemonUnreachable: the daemon went away.
        """
        while not self._events and not self._conversation.done:
            try:
                data = self._connection.recv(_RECEIVE_BYTES)
            except ConnectionResetError:
                data = b""
            self._events.extend(self._conversation.receive_data(data))
        if self._events:
            return self._events.popleft()
        raise StopIteration

    def result(self) -> dict[str, Any]:
        """Wait for the outcome, leaving out the events that are still to come, and return it.

        Raises:
            OptmigError: what the daemon answered instead.
        """
        for _ in self:
            pass
        return self._conversation.result()


class BlockingClient:
    """A daemon on this machine. Every method raises `DaemonUnreachable` if none answers."""

    def __init__(self, socket: StrPath | None = None) -> None:
        """Remember where the daemon listens; connects to nothing.

        Args:
            socket: its control socket; None for the one of this user's daemon.

        Raises:
            ConfigError: `socket` is None and the configuration that names it is wrong.
        """
        self.socket = find_socket() if socket is None else Path(socket)

    @contextmanager
    def open(self, method: str, params: dict[str, Any] | None = None) -> Iterator[BlockingReply]:
        """Send any request, and give its events and result; leaving the block ends the watching.

        Args:
            method: a method of the control socket.
            params: its parameters.

        Raises:
            DaemonUnreachable: no daemon answers.
        """
        conversation = Conversation(method, params or {})
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
            try:
                connection.connect(str(self.socket))
            except OSError as error:
                raise unreachable(self.socket, error) from error
            # A daemon that refuses this user hangs up early; what it said can still be read.
            with suppress(BrokenPipeError):
                connection.sendall(conversation.request())
            yield BlockingReply(connection, conversation)

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send any request and return its result.

        Raises:
            OptmigError: what the daemon answered instead.
        """
        with self.open(method, params) as reply:
            return reply.result()

    def ping(self) -> answers.Ping:
        """Return the daemon's name, version and platform."""
        return cast(answers.Ping, self.call("ping"))

    def launch(
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
        return cast(answers.Launched, self.call("launch", params))

    def list_enclaves(self) -> list[answers.Status]:
        """Return the status of every enclave that this host has or has had."""
        return cast(list[answers.Status], self.call("list")["enclaves"])

    def status(self, enclave: str) -> answers.Status:
        """Return the status of one enclave, wherever it is.

        Raises:
            UnknownEnclave: this host has never had it.
        """
        return cast(answers.Status, self.call("status", {"enclave": enclave}))

    def logs(self, enclave: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield the program's output from its beginning, in pieces.

        Args:
            enclave: its name.
            follow: go on until the program has ended.

        Raises:
            UnknownEnclave: this host has never had it.
        """
        with self.open("logs", {"enclave": enclave, "follow": follow}) as reply:
            for event in reply:
                yield event["content"]
            reply.result()

    def wait(self, enclave: str) -> answers.Exit:
        """Wait until the program has ended, on whichever host, and return how."""
        return cast(answers.Exit, self.call("wait", {"enclave": enclave}))

    def stop(self, enclave: str) -> answers.Exit:
        """End the program and return how it ended."""
        return cast(answers.Exit, self.call("stop", {"enclave": enclave}))

    def owner(self, enclave: str) -> answers.Owner:
        """Return who may run an enclave; asks along the way that it took.

        Raises:
            UnknownEnclave: this host has never had it.
        """
        return cast(answers.Owner, self.call("owner", {"enclave": enclave}))

    def recover(
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
        return cast(answers.Recovery, self.call("recover", params))

    def forget(self, enclave: str) -> answers.Forgotten:
        """Remove the record and the files of an enclave that has ended here or moved away.

        Raises:
            UnknownEnclave: this host has never had it.
            EnclaveError, MigrationError: it runs here, is on its way here, or was released and
                nobody has confirmed.
        """
        return cast(answers.Forgotten, self.call("forget", {"enclave": enclave}))

    def check(self, enclave: str, host: str) -> answers.Check:
        """Ask both hosts whether a migration could start, and what it would take."""
        return cast(answers.Check, self.call("check", {"enclave": enclave, "host": host}))

    def migrate(
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
        with self.open("migrate", params) as reply:
            for event in reply:
                if on_event is not None:
                    on_event(event)
            result = reply.result()
        error = requests.failure(result)
        if error is not None:
            raise error
        return cast(answers.Migration, result)

    def change(
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
        return cast(answers.Changed, self.call("set", params))

    def cancel(self, enclave: str) -> answers.CancelAnswer:
        """Ask for the end of a migration; the enclave runs on where it was.

        Raises:
            AlreadyReleased: too late, it has been handed over.
        """
        return cast(answers.CancelAnswer, self.call("cancel", {"enclave": enclave}))

    def watch(self, enclave: str = "") -> Iterator[dict[str, Any]]:
        """Yield the events of the migrations of one enclave (of all, if empty), as they happen."""
        with self.open("watch", {"enclave": enclave}) as reply:
            yield from reply
            reply.result()

    def host_identity(self) -> answers.Identity:
        """Return the name, address and public key that peers need to know."""
        return cast(answers.Identity, self.call("host_identity"))

    def host_peers(self) -> list[answers.PeerAnswer]:
        """Return the pinned peers."""
        return cast(list[answers.PeerAnswer], self.call("host_peers")["peers"])

    def host_add(self, name: str, address: str, key: str) -> None:
        """Pin a peer, or replace the one of that name; takes effect at once and is kept."""
        self.call("host_add", {"name": name, "address": address, "key": key})

    def host_remove(self, name: str) -> None:
        """Forget a peer; takes effect at once and is kept."""
        self.call("host_remove", {"name": name})

    def receipt(self, enclave_or_migration_id: str) -> dict[str, Any]:
        """Return the signed receipt of a completed migration, or of an enclave's last one."""
        return self.call("receipt", requests.which(enclave_or_migration_id))
