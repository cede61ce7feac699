"""Processes of images that a test drives itself, without an agent."""

from collections.abc import Awaitable, Callable

import trio

from optmigd.enclave_shim import image
from optmigd.enclave_shim.abi import Mode
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.kept import KeeperClient
from optmigd.enclave_shim.process import Process
from optmigd.enclave_shim.starting import Start, start_process


async def with_process(
    keeper: KeeperClient,
    arena: Arena,
    mode: Mode,
    loaded: image.Image,
    how: Start,
    act: Callable[[Process], Awaitable[None]],
    limit_s: float = 20.0,
) -> None:
    """Run `act` with a process that has booted; both process and memory are gone afterwards."""
    try:
        process = start_process(keeper, arena, loaded, mode, how)
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run)
            with trio.fail_after(limit_s):
                await process.booted()
                await act(process)
            process.kill()
    finally:
        arena.close()
