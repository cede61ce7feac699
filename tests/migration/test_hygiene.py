"""What the host's other users may see of optmigd: nothing of its files, memory and secrets.

The daemons are started as carelessly as can be: with a umask of 000, core files without limit, and
directories and a journal that exist already and are open to everybody.
"""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host, introduce, start_host, stop_host
from optmigd.protocol.wire import frame, pack
from tests.conftest import BuildProgram
from tests.migration.test_unprivileged import ordinary_user
from tests.support.processes import processes_of

CARELESS = ("sh", "-c", 'umask 000; ulimit -c unlimited; exec "$@"', "sh")
WORD = "owners-secret-word"
ENDLESS = "100000000000"


@pytest.fixture(scope="module")
def careless_pair(program: BuildProgram) -> Iterator[tuple[Host, Host]]:
    """Two hosts; enclave e1 has moved from the first to the second, e2 runs on the first."""
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="optmigd-"))
        cleanup.callback(shutil.rmtree, folder)
        hosts = []
        for name in ("alpha", "beta"):
            for part in ("", "state", "state/enclaves", "state/images"):
                (folder / name / part).mkdir()
                (folder / name / part).chmod(0o777)
            for part in ("state/journal.db", "state/journal.db-wal", "state/lock"):
                (folder / name / part).touch()
                (folder / name / part).chmod(0o666)
            hosts.append(start_host(name, folder / name, prefix=CARELESS))
            cleanup.callback(stop_host, hosts[-1])
        introduce(hosts)
        alpha, beta = hosts
        for enclave in ("e1", "e2"):
            alpha.client.launch(
                program("integers").image,
                enclave=enclave,
                memory_bytes=256 << 20,
                env={"WORD": WORD},
                args=[ENDLESS, "16", WORD],
            )
        alpha.client.migrate("e1", "beta", mode="stop-and-copy")
        # The agent that has let go is on its way out, and its files with it.
        left_pid = alpha.folder / "state/enclaves/e1@1/agent.pid"
        deadline = time.monotonic() + 30
        while left_pid.exists():
            assert time.monotonic() < deadline, "the source's agent does not leave"
            time.sleep(0.05)
        yield alpha, beta


def test_every_file_is_its_owners_alone(careless_pair: tuple[Host, Host]) -> None:
    kinds = set()
    for host in careless_pair:
        for path in [host.folder / "state", *host.folder.rglob("*")]:
            if path.name == "daemon.log":
                continue  # the test's own
            mode = path.lstat().st_mode
            if path.parent.name == "images" and stat.S_ISREG(mode):
                assert not mode & 0o222  # no secret, but nobody may change it
            else:
                assert stat.S_IMODE(mode) & 0o077 == 0, f"{path} has mode {stat.S_IMODE(mode):o}"
            kinds.add(path.name)
    assert kinds >= {
        *("optmigd.toml", "host.key", "control.sock", "state", "peers.toml", "images", "enclaves"),
        *("journal.db", "journal.db-wal", "journal.db-shm", "own"),
        *("agent.sock", "agent.pid", "agent.log", "agent.err", "output.log"),
    }


def test_no_process_leaves_a_core_file(careless_pair: tuple[Host, Host]) -> None:
    for host in careless_pair:
        processes = processes_of(host)
        assert len(processes) >= 3  # a daemon, an agent, a program
        for pid, name in processes.items():
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
            assert core[4:6] == ["0", "0"], f"{name} on {host.name} may write a core file"


def test_no_secret_is_in_arguments_environments_or_files(careless_pair: tuple[Host, Host]) -> None:
    for host in careless_pair:
        key = base64.b64decode((host.folder / "host.key").read_text())
        secrets = (WORD.encode(), key, base64.b64encode(key))
        for pid, name in processes_of(host).items():
            for part in ("cmdline", "environ"):
                content = Path(f"/proc/{pid}/{part}").read_bytes()
                assert content or part == "environ", f"{name} has no command line"
                for secret in secrets:
                    assert secret not in content, f"a secret is in the {part} of {name}"
        files = [path for path in host.folder.rglob("*") if path.is_file()]
        assert any(path.name == "agent.log" for path in files)
        for path in files:
            if path.name != "host.key":
                for secret in secrets:
                    assert secret not in path.read_bytes(), f"a secret is in {path}"


def test_a_user_cannot_look_into_processes_of_the_same_user(
    program: BuildProgram, tmp_path: Path
) -> None:
    """Without privilege; the control process shows that others could be looked into."""
    with tempfile.TemporaryDirectory(prefix="optmigd-") as folder:
        done = subprocess.run(
            [
                *ordinary_user(),
                *(sys.executable, "-m", "tests.support.peeping"),
                *(str(program("integers").image), f"{folder}/alpha"),
            ],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("control") == ["environ", "mem", "maps"]
    assert "daemon" in seen
    assert len(seen) >= 3
    assert {name: found for name, found in seen.items() if found} == {}


ASK_AS_NOBODY = """
import os, socket, sys
directory = os.open(sys.argv[1], os.O_PATH)
os.setgroups([])
os.setresgid(*[int(sys.argv[2])] * 3)
os.setresuid(*[int(sys.argv[2])] * 3)
agent = socket.socket(socket.AF_UNIX)
agent.settimeout(20)
agent.connect(f"/proc/self/fd/{directory}/agent.sock")
try:
    agent.sendall(sys.stdin.buffer.read())
    print(len(agent.recv(4096)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_turned_away_by_an_agent(careless_pair: tuple[Host, Host]) -> None:
    """Also where the modes of directory and socket would let that user in."""
    beta = careless_pair[1]
    directory = beta.folder / "state/enclaves/e1@1"
    directory.chmod(0o755)
    (directory / "agent.sock").chmod(0o666)
    question = frame(pack({"id": 1, "method": "status", "params": {}}))
    answers = [
        subprocess.run(
            [sys.executable, "-c", ASK_AS_NOBODY, str(directory), user],
            input=question,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for user in ("65534", "0")
    ]
    assert int(answers[0]) == 0
    assert int(answers[1]) > 0
