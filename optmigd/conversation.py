"""One request to a daemon over its control socket, without the socket.

Bytes in, replies out, so that the async and the blocking client share every rule. A client opens
one connection for each request: a watcher that reads slowly then holds up nobody else, and closing
the connection is all there is to ending a request. Ending one stops watching; it never cancels a
migration.
"""

from pathlib import Path
from typing import Any

from optmigd.protocol.errors import ChannelClosed, OptmigError, RemoteProtocolError, from_wire
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

REQUEST_ID = 1
"""Each connection carries one request, so every request has the same number."""


class DaemonUnreachable(OptmigError):
    """No daemon answers on the control socket, or it went away before it had answered."""

    code = "daemon-unreachable"


class DaemonMisunderstood(OptmigError):
    """The daemon answered something that this client cannot read."""

    code = "daemon-misunderstood"


class Conversation:
    """A request and what has been said to it so far.

    Feed `receive_data` until `done`; then `result` returns or raises the outcome.
    """

    def __init__(self, method: str, params: dict[str, Any]) -> None:
        """Prepare a request.

        Args:
            method: a method of the control socket, such as ``"migrate"``.
            params: its parameters; msgpack's types only.
        """
        self._method = method
        self._params = params
        self._decoder = FrameDecoder()
        self._result: dict[str, Any] | None = None
        self._error: OptmigError | None = None

    def request(self) -> bytes:
        """Return the bytes that open the conversation."""
        return frame(pack({"id": REQUEST_ID, "method": self._method, "params": self._params}))

    @property
    def done(self) -> bool:
        """Whether the outcome has arrived."""
        return self._result is not None or self._error is not None

    def receive_data(self, data: bytes) -> list[dict[str, Any]]:
        """Take what the socket gave and return the events in it.

        Args:
            data: the bytes read; empty for the end of the stream.

        Raises:
            DaemonUnreachable: the stream ended before the outcome.
            DaemonMisunderstood: the daemon broke the protocol.
        """
        if not data:
            raise DaemonUnreachable(
                f"the daemon went away before it had answered {self._method!r}; what was asked may "
                f"or may not have been done. Start it again if it is down, then ask for the state "
                f"with `optmigctl list`",
                method=self._method,
            )
        events: list[dict[str, Any]] = []
        try:
            self._decoder.feed(data)
            while not self.done and (payload := self._decoder.next_frame()) is not None:
                event = self._take(unpack(payload))
                if event is not None:
                    events.append(event)
        except RemoteProtocolError as error:
            raise self._misunderstood(error.message) from error
        return events

    def result(self) -> dict[str, Any]:
        """Return the result.

        Raises:
            OptmigError: what the daemon answered instead, as the class of its code.
            ChannelClosed: there is no outcome yet.
        """
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise ChannelClosed(f"{self._method!r} has not been answered yet", method=self._method)
        return self._result

    def _take(self, message: object) -> dict[str, Any] | None:
        match message:
            case {"event": dict(event), **rest} if rest == {"id": REQUEST_ID}:
                return event
            case {"result": dict(result), **rest} if rest == {"id": REQUEST_ID}:
                self._result = result
            case {
                "error": {"code": str(code), "message": str(text), "fields": dict(fields)},
                # A request that could not be read has no number to answer to.
                "id": None | 0 | 1,
                **rest,
            } if not rest:
                self._error = from_wire(code, text, fields)
            case _:
                keys = sorted(map(str, message)) if isinstance(message, dict) else "none"
                raise self._misunderstood(f"a message with the keys {keys}")
        return None

    def _misunderstood(self, found: str) -> DaemonMisunderstood:
        return DaemonMisunderstood(
            f"expected an event, a result or an error for {self._method!r} from the daemon; found "
            f"{found}. Are `optmigctl` and `optmigd` of the same version?",
            method=self._method,
        )


def unreachable(socket: Path, error: OSError) -> DaemonUnreachable:
    """Say why no connection could be made to `socket`, and what to do."""
    match error:
        case FileNotFoundError():
            found = "there is no such socket"
        case ConnectionRefusedError():
            found = "the socket is there, but nobody listens on it"
        case PermissionError():
            found = "this user may not connect: only the daemon's own user and root may"
        case _:
            found = str(error)
    return DaemonUnreachable(
        f"expected a daemon on {socket}; {found}. Start one with `optmigd serve`, or name its "
        f"socket with --socket or OPTMIGD_SOCKET",
        socket=str(socket),
    )
