"""The shim agent with a gate at every step of the hand-off; the code under test is the real one."""

import sys
from typing import Any

from optmigd.enclave_shim.__main__ import main as agent_main
from optmigd.enclave_shim.connection import Params, Server
from optmigd.enclave_shim.migration.conversation import Conversation
from optmigd.enclave_shim.process import Process
from optmigd.protocol.handoff import Event, Migration
from optmigd.protocol.session import Answer
from tests.faults.gate import reach

_STEPS = frozenset(
    {
        Event.ACCEPTED,
        Event.ROUND_DONE,
        Event.CONVERGED,
        Event.QUIESCED,
        Event.MANIFEST_SENT,
        Event.READY_EQUAL,
        Event.TOKEN_MADE,
        Event.RESUMED_RECEIVED,
        Event.OFFERED,
        Event.ROUND_RECEIVED,
        Event.MANIFEST_EQUAL,
        Event.PREPARED,
        Event.TOKEN_ACCEPTED,
        Event.RUNNING,
    }
)
_AFTER = frozenset(
    {
        Event.READY_EQUAL,
        Event.TOKEN_MADE,
        Event.RESUMED_RECEIVED,
        Event.PREPARED,
        Event.TOKEN_ACCEPTED,
        Event.RUNNING,
    }
)
_SENT = frozenset({"release", "resumed", "ended"})


def _here(name: str) -> None:
    reach("agent", name)


def wrap() -> None:
    """Gates at transitions, messages of the session, the release and words to the daemon."""
    handle, send, say, release = (
        Migration.handle,
        Conversation.send,
        Server.send,
        Process.release,
    )

    def gated_handle(self: Migration, event: Event) -> Any:
        if event in _STEPS:
            _here(f"before {event.name}")
        actions = handle(self, event)
        if event in _AFTER:
            _here(f"after {event.name}")
        return actions

    async def gated_send(self: Conversation, message: Any) -> None:
        if not isinstance(message, Answer):  # just after OFFERED
            _here(f"sends {type(message).__name__}")
        await send(self, message)
        if type(message).__name__ == "Ready":
            _here("has sent Ready")

    async def gated_say(self: Server, event: str, params: Params) -> None:
        if event in _SENT:
            _here(f"says {event}")
        await say(self, event, params)
        if event == "resumed":
            _here("has said resumed")

    def gated_release(self: Process) -> None:
        _here("makes itself unable to run")
        release(self)

    Migration.handle = gated_handle  # type: ignore[method-assign]
    Conversation.send = gated_send  # type: ignore[method-assign]
    Server.send = gated_say  # type: ignore[method-assign]
    Process.release = gated_release  # type: ignore[method-assign]


if __name__ == "__main__":
    wrap()
    sys.exit(agent_main())
