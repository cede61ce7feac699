"""Agents outlive the daemon: the next one finds them, and what happened meanwhile."""

# It looks at files and into /proc while nothing else needs the loop.
# ruff: noqa: ASYNC240

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from optmigd.daemon import serve
from optmigd.protocol.errors import ConfigError, RuntimeFailed
from tests.support.daemons import FAKE_AGENT, Site, eventually, two_sites


def agent_pid(site: Site, instance: str) -> int:
    return int((site.directory / "state/enclaves" / instance / "agent.pid").read_text())


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_running_enclaves_are_adopted(how: str) -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        before = await pair.a.client.status("e1")
        pid = agent_pid(pair.a, "e1@1")
        await (pair.a.stop() if how == "stopped" else pair.a.stop_as_if_killed())
        assert Path(f"/proc/{pid}").exists()
        await pair.a.start()
        assert await pair.a.client.status("e1") == before
        assert (await pair.a.client.migrate("e1", "b"))["state"] == "completed"
        flag.write_text("3")
        assert await pair.a.client.wait("e1") == {"exit_status": 3, "host": "b"}


async def test_a_program_that_ended_meanwhile_is_exited() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        pid = agent_pid(pair.a, "e1@1")
        await pair.a.stop()
        flag.write_text("9")
        exited = pair.a.directory / "state/enclaves/e1@1/exited"
        await eventually(exited.exists, "the program has ended")
        await pair.a.start()
        assert await pair.a.client.wait("e1") == {"exit_status": 9, "host": "a"}
        await eventually(lambda: not Path(f"/proc/{pid}").exists(), "its agent has left")


async def test_an_agent_that_died_meanwhile_is_noticed() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.stop()
        pair.a.end_agents()
        await pair.a.start()
        with pytest.raises(RuntimeFailed, match="without an exit status"):
            await pair.a.client.wait("e1")


async def test_what_has_moved_is_still_known() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        there = await pair.b.client.status("e1")
        for site in (pair.a, pair.b):
            await site.stop()
        for site in (pair.a, pair.b):
            await site.start()
        status = await pair.a.client.status("e1")
        assert {**status, "migration": None} == {**there, "migration": None}
        await pair.b.client.migrate("e1", "a")
        assert (await pair.a.client.status("e1"))["owner_generation"] == 3


async def test_an_enclave_that_is_away_is_told_of_from_memory() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        await pair.b.stop()
        status = await pair.a.client.status("e1")
        assert (status["state"], status["host"]) == ("moved", "b")


async def test_wait_and_logs_go_on_when_the_other_daemon_comes_back() -> None:
    async with two_sites() as pair:
        flag = pair.directory / "flag"
        await pair.launch(ends_when=str(flag))
        await pair.a.client.migrate("e1", "b")
        ends: list[object] = []
        pieces: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                ends.append(await pair.a.client.wait("e1"))

            async def follow() -> None:
                async with pair.a.client.logs("e1", follow=True) as output:
                    async for piece in output:
                        pieces.append(piece)

            nursery.start_soon(wait)
            nursery.start_soon(follow)
            await eventually(lambda: b"generation 2" in b"".join(pieces), "it follows")
            await pair.b.stop()
            await trio.testing.wait_all_tasks_blocked(0.05)
            await pair.b.start()
            flag.write_text("1")
        assert ends == [{"exit_status": 1, "host": "b"}]
        assert b"".join(pieces) == b"generation 1\ngeneration 2\n"


@pytest.mark.parametrize("state", ["exited", "moved"])
async def test_agents_of_enclaves_that_are_gone_are_ended(state: str) -> None:
    """The daemon was killed after it had journaled the end, and before the agent had left."""
    async with two_sites() as pair:
        await pair.launch()
        pid = agent_pid(pair.a, "e1@1")
        await pair.a.stop()
        await trio.to_thread.run_sync(_set_state, pair.a.directory / "state/journal.db", state)
        await pair.a.start()
        await eventually(lambda: not Path(f"/proc/{pid}").exists(), "its agent has left")


async def test_strays_are_removed() -> None:
    """A directory that no journal knows, with an agent in it: a crash between two steps."""
    async with two_sites() as pair:
        await pair.a.stop()
        stray = pair.a.directory / "state/enclaves/stray@1"
        stray.mkdir()
        read, write = os.pipe()
        process = await trio.lowlevel.open_process(
            [*FAKE_AGENT, "--dir", str(stray), "--ready-fd", str(write)],
            pass_fds=(write,),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        os.close(write)
        assert await trio.to_thread.run_sync(os.read, read, 1) == b"!"
        os.close(read)
        await pair.a.start()
        await eventually(lambda: not Path(f"/proc/{process.pid}").exists(), "it was ended")
        await process.wait()
        assert pair.a.instances == []


async def test_an_unfinished_launch_leaves_nothing() -> None:
    async with two_sites() as pair:
        await pair.launch()
        await pair.a.stop()
        journal = pair.a.directory / "state/journal.db"
        await trio.to_thread.run_sync(_set_state, journal, "starting")
        await pair.a.start()
        assert await pair.a.client.list_enclaves() == []
        assert pair.a.instances == []


def _set_state(journal: Path, state: str) -> None:
    import sqlite3

    connection = sqlite3.connect(journal)
    with connection:
        connection.execute("UPDATE instances SET state = ?", (state,))
    connection.close()


async def test_two_daemons_never_share_a_state_directory_or_a_socket() -> None:
    async with two_sites() as pair:
        with pytest.RaisesGroup(
            pytest.RaisesExc(ConfigError, match="another daemon listens on"), flatten_subgroups=True
        ):
            other = Site("c", pair.a.directory, pair.a.nursery)
            other.overrides = {"paths.state_dir": pair.directory / "other"}
            await serve(other.settings, agent_command=FAKE_AGENT)
        with pytest.raises(ConfigError, match="another daemon uses the state directory"):
            await serve(pair.a.settings, agent_command=FAKE_AGENT)


async def test_a_journal_of_another_version_is_left_alone() -> None:
    async with two_sites() as pair:
        await pair.a.stop()
        journal = pair.a.directory / "state/journal.db"
        await trio.to_thread.run_sync(_set_version, journal, 99)
        with pytest.raises(ConfigError, match=r"expected a journal of version 2 at .*, found 99"):
            await serve(pair.a.settings, agent_command=FAKE_AGENT)


def _set_version(journal: Path, version: int) -> None:
    import sqlite3

    connection = sqlite3.connect(journal)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def _nobody_can_run_python() -> bool:
    if os.geteuid() != 0:
        return False
    try:
        return (
            subprocess.run([sys.executable, "-c", ""], user="nobody", check=False).returncode == 0
        )
    except PermissionError:
        return False


@pytest.mark.skipif(
    not _nobody_can_run_python(),
    reason="needs root, and an interpreter that the user nobody may execute",
)
async def test_root_starts_enclaves_as_an_unprivileged_user(tmp_path: Path) -> None:
    async with two_sites(enclave_user="nobody") as pair:
        pair.directory.chmod(0o711)
        for site in (pair.a, pair.b):
            site.directory.chmod(0o711)
        await pair.launch()
        await pair.a.client.migrate("e1", "b")
        state = pair.b.directory / "state"
        pid = agent_pid(pair.b, "e1@1")
        uids = Path(f"/proc/{pid}/status").read_text().splitlines()
        assert "Uid:\t65534\t65534\t65534\t65534" in uids
        assert "Groups:\t" in [line.rstrip(" ") for line in uids]
        assert stat.S_IMODE(state.stat().st_mode) == 0o711
        assert stat.S_IMODE((state / "enclaves/e1@1").stat().st_mode) == 0o700
        assert stat.S_IMODE((state / "journal.db").stat().st_mode) == 0o600


async def test_an_unknown_enclave_user_is_a_configuration_error() -> None:
    async with two_sites() as pair:
        await pair.a.stop()
        pair.a.overrides = {"enclave_user": "no-such-user"}
        with pytest.raises(ConfigError, match="no such user"):
            await serve(pair.a.settings, agent_command=FAKE_AGENT)


async def test_a_cancelled_migration_is_not_taken_up_again() -> None:
    async with two_sites() as pair:
        await pair.launch(script=json.dumps({"source": {"hold_at": "active"}}))
        await pair.a.client.migrate("e1", "b", detach=True)
        await eventually(lambda: pair.b.instances != [], "b receives")
        await pair.a.client.cancel("e1")
        await pair.a.stop()
        await pair.a.start()
        status = await pair.a.client.status("e1")
        assert status["state"] == "running"
        await eventually(lambda: pair.b.instances == [], "b has nothing of it")
