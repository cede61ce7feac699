"""`optmigd` with a gate at every message and journal write; the code under test is the real one.

While the file named by OPTMIGD_TEST_DISK_FULL exists, the journal's disk is full.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optmigd.cli import serve
from optmigd.daemon import agents, journal, link, service, streams
from optmigd.protocol import link as messages
from tests.faults.gate import reach
from tests.support.full_disk import fills_up

DISK_FULL = "OPTMIGD_TEST_DISK_FULL"

# The attested session is opaque to a daemon: the agents' own boundaries tell its messages apart.
# Queries are the harness's own questions.
_SILENT = (messages.Session, messages.Query, messages.QueryResult, messages.QueryError)
_METHODS = frozenset({"export", "receive", "add_stream", "cancel"})
_EVENTS = frozenset({"token_delivered", "resumed_delivered"})
_HEARD = frozenset({"round", "release", "resumed", "ended"})
_STATES = frozenset({"active", "switchover"})
_AFTER = ("Token", "Resumed")


def _here(name: str) -> None:
    reach("daemon", name)


def wrap_link() -> None:
    """Gates before a message is sent, after the two that matter most, and at each one received."""
    send, receive = link.Link.send, link.Link.receive

    async def gated_send(self: link.Link, message: messages.LinkMessage) -> None:
        if isinstance(message, _SILENT):
            await send(self, message)
            return
        name = type(message).__name__
        _here(f"sends {name}")
        await send(self, message)
        if name in _AFTER:
            _here(f"has sent {name}")

    async def gated_receive(
        self: link.Link, *, timeout_s: float | None = None
    ) -> messages.LinkMessage:
        message = await receive(self, timeout_s=timeout_s)
        if not isinstance(message, _SILENT):
            _here(f"receives {type(message).__name__}")
        return message

    link.Link.send = gated_send  # type: ignore[method-assign]
    link.Link.receive = gated_receive  # type: ignore[method-assign]


def wrap_agents() -> None:
    """Gates before each word to a shim agent, and at each word from it."""
    request, notify, take = agents.Agent.request, agents.Agent.notify, agents.Agent._take

    async def gated_request(
        self: agents.Agent, method: str, *arguments: Any, **options: Any
    ) -> agents.Event:
        if method in _METHODS:
            _here(f"asks agent {method}")
        return await request(self, method, *arguments, **options)

    async def gated_notify(self: agents.Agent, event: str, params: agents.Event) -> None:
        if event in _EVENTS:
            _here(f"tells agent {event}")
        await notify(self, event, params)

    async def gated_take(self: agents.Agent, message: agents.Event) -> None:
        event = message.get("event")
        if event == "state" and message["params"]["state"] in _STATES:
            _here(f"hears state {message['params']['state']}")
        elif event in _HEARD:
            _here(f"hears {event}")
        await take(self, message)

    agents.Agent.request = gated_request  # type: ignore[method-assign]
    agents.Agent.notify = gated_notify  # type: ignore[method-assign]
    agents.Agent._take = gated_take  # type: ignore[method-assign]


def wrap_journal() -> None:
    """Gates before and after every write transaction; the disk fills up on demand."""
    write = fills_up(_disk_is_full)

    async def gated_write(
        self: journal.Journal,
        *statements: journal.Statement,
        then: Callable[[], None] | None = None,
    ) -> None:
        name = ", ".join(_describe(statement) for statement in statements)
        _here(f"writes {name}")
        await write(self, *statements, then=then)
        _here(f"has written {name}")

    journal.Journal._write = gated_write  # type: ignore[method-assign]


def wrap_streams() -> None:
    """Gates around the token's way past the other daemon; the thread that journals passes them."""
    send = streams.StreamDuplicates.send_frame

    def gated_send(self: streams.StreamDuplicates, payload: bytes) -> None:
        _here("sends the token on a stream")
        send(self, payload)
        _here("has sent the token on a stream")

    streams.StreamDuplicates.send_frame = gated_send  # type: ignore[method-assign]


def _disk_is_full(_journal: Path) -> bool:
    path = os.environ.get(DISK_FULL)
    return path is not None and Path(path).exists()


def _describe(statement: journal.Statement) -> str:
    sql, values = statement
    if sql.startswith("DELETE"):
        return "no instance"
    if "instances" in sql:
        return f"instance {values[2]}"
    known = [name for name, value in (("token", values[8]), ("resumed", values[9])) if value]
    return " ".join(["migration", values[6], *(f"with {name}" for name in known)])


def main() -> None:
    """Run `optmigd` with these gates; its agents are wrapped as well."""
    wrap_link()
    wrap_agents()
    wrap_journal()
    wrap_streams()
    command = (sys.executable, "-P", "-m", "tests.faults.wrapped_agent")
    setattr(service, "AGENT_COMMAND", command)  # noqa: B010
    serve.main()


if __name__ == "__main__":
    main()
