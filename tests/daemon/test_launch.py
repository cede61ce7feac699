"""Launching, listing, output, exit and stop on one host."""

import os
import stat

import pytest
import trio
import trio.testing

from optmigd.protocol.errors import (
    EnclaveError,
    EnclaveExists,
    ImageInvalid,
    OptmigError,
    RuntimeFailed,
    UnknownEnclave,
)
from tests.support.daemons import eventually, two_sites


async def test_launched_enclave_is_listed_and_described() -> None:
    async with two_sites() as pair:
        launched = await pair.a.client.launch(
            pair.image(), enclave="e1", memory_bytes=1 << 20, dir="/srv/own"
        )
        assert launched == {
            "enclave": "e1",
            "measurement": "ab" * 32,
            "platform": "sim",
            "tracker": "kernel",
        }
        status = await pair.a.client.status("e1")
        assert status["state"] == "running"
        assert status["host"] == "a"
        assert status["memory_bytes"] == status["resident_bytes"] == 1 << 20
        assert status["owner_generation"] == 1
        assert status["exit_status"] is None
        assert status["migration"] is None
        assert status["dir"] == "/srv/own"
        assert await pair.a.client.list_enclaves() == [status]
        assert await pair.b.client.list_enclaves() == []


async def test_a_name_is_made_up_where_none_is_given() -> None:
    async with two_sites() as pair:
        names = [(await pair.a.client.launch(pair.image()))["enclave"] for _ in range(2)]
        assert len(set(names)) == 2
        assert [one["enclave"] for one in await pair.a.client.list_enclaves()] == sorted(names)


async def test_program_that_ends_is_exited_and_its_agent_leaves() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        agent = int((pair.a.directory / "state/enclaves/e1@1/agent.pid").read_text())
        async with trio.open_nursery() as nursery:
            results: list[object] = []

            async def wait() -> None:
                results.append(await pair.a.client.wait("e1"))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert results == []
            flag.write_text("42")
        assert results == [{"exit_status": 42, "host": "a"}]
        status = await pair.a.client.status("e1")
        assert (status["state"], status["exit_status"]) == ("exited", 42)
        await eventually(lambda: not os.path.exists(f"/proc/{agent}"), "the agent has left")


async def test_agent_that_dies_is_an_exit_that_nobody_knows() -> None:
    async with two_sites() as pair:
        await pair.launch()
        pair.a.end_agents()
        with pytest.raises(RuntimeFailed, match="without an exit status on host a"):
            await pair.a.client.wait("e1")
        assert (await pair.a.client.status("e1"))["state"] == "exited"


async def test_stop_ends_the_program() -> None:
    async with two_sites() as pair:
        await pair.launch()
        assert await pair.a.client.stop("e1") == {"exit_status": 143}
        assert await pair.a.client.wait("e1") == {"exit_status": 143, "host": "a"}
        assert await pair.a.client.stop("e1") == {"exit_status": 143}


async def test_logs_give_the_output_and_follow_it_to_the_end() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        async with pair.a.client.logs("e1") as pieces:
            assert b"".join([piece async for piece in pieces]) == b"generation 1\n"
        async with pair.a.client.logs("e1", follow=True) as pieces:
            seen = await anext(pieces)
            flag.write_text("0")
            output = trio.Path(pair.a.directory / "state/enclaves/e1@1/output.log")
            await output.write_bytes(await output.read_bytes() + b"last words\n")
            rest = b"".join([piece async for piece in pieces])
        assert seen + rest == b"generation 1\nlast words\n"


@pytest.mark.parametrize("enclave", ["../up", "a/b", "-x", "x" * 64, "a b", "a\n"])
async def test_names_that_are_no_file_names_are_refused(enclave: str) -> None:
    async with two_sites() as pair:
        with pytest.raises(EnclaveError, match="expected an enclave id"):
            await pair.a.client.launch(pair.image(), enclave=enclave)
        assert pair.a.instances == []


async def test_a_second_enclave_of_one_name_is_refused() -> None:
    async with two_sites() as pair:
        await pair.launch()
        with pytest.raises(EnclaveExists, match="'e1' already, which is running"):
            await pair.launch()
        assert pair.a.instances == ["e1@1"]


async def test_images_that_are_none_are_refused() -> None:
    async with two_sites(**{"limits.max_image_bytes": 5000}) as pair:
        client = pair.a.client
        text = pair.directory / "text"
        text.write_text("#!/bin/sh\n")
        with pytest.raises(ImageInvalid, match="there is no file"):
            await client.launch(pair.directory / "absent")
        with pytest.raises(ImageInvalid, match="static x86-64 ELF"):
            await client.launch(text)
        with pytest.raises(ImageInvalid, match="at most 5000 bytes"):
            await client.launch(pair.image(b"x" * 5000))
        assert list((pair.a.directory / "state/images").iterdir()) == []
        assert await client.list_enclaves() == []


async def test_failed_launch_leaves_nothing() -> None:
    async with two_sites() as pair:
        with pytest.raises(OptmigError, match="no such kernel feature"):
            await pair.launch(script='{"launch_error": "no such kernel feature"}')
        assert pair.a.instances == []
        with pytest.raises(UnknownEnclave):
            await pair.a.client.status("e1")
        await pair.launch()


async def test_limits_bound_the_enclaves_of_a_host() -> None:
    async with two_sites(**{"limits.max_enclaves": 1}) as pair:
        await pair.launch("e1")
        with pytest.raises(EnclaveError, match="max_enclaves there is 1"):
            await pair.launch("e2")
        await pair.a.client.stop("e1")
        await pair.launch("e2")


async def test_nobody_else_can_look_into_the_state() -> None:
    async with two_sites() as pair:
        await pair.launch()
        state = pair.a.directory / "state"
        modes = {
            str(path.relative_to(pair.a.directory)): stat.S_IMODE(path.stat().st_mode)
            for path in [state, state / "journal.db", state / "enclaves" / "e1@1"]
        }
        modes["control.sock"] = stat.S_IMODE((pair.a.directory / "control.sock").stat().st_mode)
        assert modes == {
            "state": 0o700,
            "state/journal.db": 0o600,
            "state/enclaves/e1@1": 0o700,
            "control.sock": 0o600,
        }


async def test_operations_on_what_is_not_there_name_it() -> None:
    async with two_sites() as pair:
        client = pair.a.client
        for call in (client.status, client.wait, client.stop, client.cancel):
            with pytest.raises(UnknownEnclave, match="'nobody'"):
                await call("nobody")
