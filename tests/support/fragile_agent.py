"""A shim agent whose first process kills itself at a chosen point (`DIES_AT` in the environment).

The keeper is the real one, and so is the agent that follows. A point is a method that is replaced
by one that dies before, or after, it has done its work. At two points it does not die: something
ends the migration in the same turn of the event loop in which READY has come, or may be said.
"""

import inspect
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from optmigd.enclave_shim.__main__ import main
from optmigd.enclave_shim.kept import Inheritance

CANCELLED_WITH_READY = "cancelled with READY"
SPOILED_BEFORE_READY = "spoiled before READY"
MENDED = Path("mended")
"""In the instance's directory: ends a crash loop."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fragile(owner: Any, name: str, *, after: bool, only_if: Callable[..., bool]) -> None:
    original = getattr(owner, name)

    async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
        if not after and only_if(*args):
            _die()
        result = await original(*args, **kwargs)
        if after and only_if(*args):
            _die()
        return result

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not after and only_if(*args):
            _die()
        result = original(*args, **kwargs)
        if after and only_if(*args):
            _die()
        return result

    setattr(owner, name, wrapped_async if inspect.iscoroutinefunction(original) else wrapped)


def _make_fragile(point: str) -> None:
    """Arrange for this process to die at a point."""
    from optmigd.enclave_shim.migration import source
    from optmigd.enclave_shim.migration.arrival import Arrival
    from optmigd.enclave_shim.migration.departure import Departure
    from optmigd.enclave_shim.migration.rounds import Rounds
    from optmigd.enclave_shim.migration.takeover import Takeover
    from optmigd.enclave_shim.process import Process
    from optmigd.protocol.handoff_seals import HandoffSeals

    def always(*args: Any) -> bool:
        return True

    def is_confirmed(takeover: Takeover) -> bool:
        return bool(takeover.confirmation)

    points: dict[str, tuple[Any, str, bool, Callable[..., bool]]] = {
        # source
        "tracking": (Rounds, "collect", False, always),
        "parking": (signal, "pidfd_send_signal", False, always),
        "parked": (source, "make_manifest", False, always),
        "noted": (Process, "release", False, always),
        "unable to run": (Process, "release", True, always),
        "released": (Departure, "complete", False, always),
        "token out": (Departure, "_send_token", True, always),
        "confirmation in hand": (Departure, "resumed_delivered", False, always),
        # destination
        "receiving": (Arrival, "fits", False, always),
        "ready noted": (Arrival, "send_ready", False, always),
        "ready said": (Arrival, "send_ready", True, always),
        "running": (HandoffSeals, "seal_resumed", False, always),
        "sealed": (Takeover, "note", False, is_confirmed),
        "confirmed": (Takeover, "note", True, is_confirmed),
    }
    owner, name, after, only_if = points[point]
    _fragile(owner, name, after=after, only_if=only_if)


def _cancel_with_ready() -> None:
    """Have the source cancelled when READY is there and nobody has looked at it yet."""
    from optmigd.enclave_shim.migration import sending, source

    switch_over = source.Source._switch_over

    async def with_cancel(self: source.Source, *arguments: Any) -> None:
        receive = vars(sending)["receive_ready"]

        async def receive_ready(*arguments: Any) -> Any:
            ready = await receive(*arguments)
            self.cancel()
            return ready

        vars(sending)["receive_ready"] = receive_ready
        await switch_over(self, *arguments)

    vars(source)["Source"]._switch_over = with_cancel


def _spoil_before_ready() -> None:
    """Have the session spoiled when nothing is left to wait for before READY."""
    from optmigd.enclave_shim import process
    from optmigd.enclave_shim.migration import destination

    verify, done = destination.Destination._verify, process.Process.done

    async def spoiled(self: destination.Destination, *arguments: Any) -> Any:
        async def done_and_spoiled(one: process.Process, *arguments: Any) -> None:
            await done(one, *arguments)
            self.deliver(b"nothing that opens")
            while trio.current_effective_deadline() != -math.inf:
                await trio.lowlevel.cancel_shielded_checkpoint()

        vars(process)["Process"].done = done_and_spoiled
        return await verify(self, *arguments)

    vars(destination)["Destination"]._verify = spoiled


def _work(inheritance: Inheritance) -> int:
    point = os.environ["DIES_AT"]
    if point == "start":
        if inheritance.restarts and not MENDED.exists():
            _die()
    elif point == CANCELLED_WITH_READY:
        _cancel_with_ready()
    elif point == SPOILED_BEFORE_READY:
        _spoil_before_ready()
    elif not inheritance.restarts:
        _make_fragile(point)
    from optmigd.enclave_shim import worker

    return worker.main(Path.cwd(), None, inheritance)


if __name__ == "__main__":
    sys.exit(main(work=_work))
