"""The shim agent with a gate at every step of the hand-off; the code under test is the real one.

The gates are put in where the keeper forks the agent. The keeper itself is as it is, but it notes
beside the host's instances how an agent has ended that nobody has ended.
"""

import signal
import sys
from pathlib import Path
from typing import Any

from optmigd.enclave_shim import keeper
from optmigd.enclave_shim.__main__ import main as keeper_main
from optmigd.enclave_shim.kept import Inheritance
from tests.faults.gate import reach

_STEPS = frozenset(
    [
        "ACCEPTED",
        "ROUND_DONE",
        "CONVERGED",
        "QUIESCED",
        "MANIFEST_SENT",
        "READY_EQUAL",
        "TOKEN_MADE",
        "RESUMED_RECEIVED",
        "OFFERED",
        "ROUND_RECEIVED",
        "MANIFEST_EQUAL",
        "PREPARED",
        "TOKEN_ACCEPTED",
        "RUNNING",
    ]
)
_AFTER = frozenset(
    ["READY_EQUAL", "TOKEN_MADE", "RESUMED_RECEIVED", "PREPARED", "TOKEN_ACCEPTED", "RUNNING"]
)
_SENT = frozenset({"release", "resumed", "ended"})
_ENDED_BY_OTHERS = frozenset({0, -signal.SIGKILL, -signal.SIGTERM})
CRASHES = "agent-crashes"
"""In a host's state directory: a line `ENCLAVE@N STATUS` for each."""


def _here(name: str) -> None:
    reach("agent", name)


def wrap() -> None:
    """Gates at transitions, messages of the session, notes, the release, words to the daemon."""
    from optmigd.enclave_shim.connection import Params, Server
    from optmigd.enclave_shim.migration.arrival import Arrival
    from optmigd.enclave_shim.migration.conversation import Conversation
    from optmigd.enclave_shim.migration.pump import Sender
    from optmigd.enclave_shim.process import Process
    from optmigd.enclave_shim.remembered import Memory
    from optmigd.protocol.handoff import Event, Migration
    from optmigd.protocol.session import Answer

    handle, send, say = Migration.handle, Conversation.send, Server.send
    send_manifest, send_ready = Sender.send_manifest, Arrival.send_ready
    release, write = Process.release, Memory.note_migration

    def gated_handle(self: Migration, event: Event) -> Any:
        if event.name in _STEPS:
            _here(f"before {event.name}")
        actions = handle(self, event)
        if event.name in _AFTER:
            _here(f"after {event.name}")
        return actions

    async def gated_send(self: Conversation, message: Any) -> None:
        if not isinstance(message, Answer):  # just after OFFERED
            _here(f"sends {type(message).__name__}")
        await send(self, message)

    def gated_manifest(self: Sender, payload: bytes) -> None:
        _here("sends Manifest")  # in a thread: the event loop goes on
        send_manifest(self, payload)

    def gated_ready(self: Arrival, payload: bytes) -> None:
        _here("sends Ready")
        send_ready(self, payload)
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

    def gated_note(self: Memory, note: Any, *, generation: int = 0) -> None:
        name = type(note).__name__
        if getattr(note, "confirmation", b""):
            name += " with confirmation"
        _here(f"notes {name}")
        write(self, note, generation=generation)
        if name != "UnderWay":
            _here(f"has noted {name}")

    Migration.handle = gated_handle  # type: ignore[method-assign]
    Conversation.send = gated_send  # type: ignore[method-assign]
    Sender.send_manifest = gated_manifest  # type: ignore[method-assign]
    Arrival.send_ready = gated_ready  # type: ignore[method-assign]
    Server.send = gated_say  # type: ignore[method-assign]
    Process.release = gated_release  # type: ignore[method-assign]
    Memory.note_migration = gated_note  # type: ignore[method-assign]


def agent(inheritance: Inheritance) -> int:
    """What the keeper forks; the instance's directory is the working directory."""
    from optmigd.enclave_shim import worker

    wrap()
    return worker.main(Path.cwd(), None, inheritance)


def note_crashes() -> None:
    """Have the keeper note how its agents crash; the instance's directory may go with them."""
    run_agent = keeper.Keeper._run_agent

    def noted(self: keeper.Keeper) -> int:
        status = run_agent(self)
        if status not in _ENDED_BY_OTHERS:
            instance = Path.cwd()
            with open(instance.parents[1] / CRASHES, "a") as file:
                file.write(f"{instance.name} {status}\n")
        return status

    keeper.Keeper._run_agent = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    note_crashes()
    sys.exit(keeper_main(work=agent))
