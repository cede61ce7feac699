"""Bad input: a clear message, the right exit code, and the enclave running on where it was.

Each test asks as an operator would, through `optmigctl`, two real daemons and a real program.
"""

import hashlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host, introduce, start_host, stop_host
from tests.conftest import BuildProgram
from tests.migration.test_unprivileged import ordinary_user
from tests.support.ctl import Outcome, ctl
from tests.support.proxy import proxy_to

REFUSED, FAILED, CANCELLED = 3, 4, 5

Hold = Callable[..., str]


@pytest.fixture
def hold(program: BuildProgram, pair: tuple[Host, Host], tmp_path: Path) -> Iterator[Hold]:
    """Start programs that hold something; at the end all run on, on the first host."""
    held: list[tuple[str, str, Path]] = []

    def start(what: str = "nothing", path: str = "", *options: str) -> str:
        enclave = f"{what}-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:6]}-{len(held)}"
        own = tmp_path / enclave
        own.mkdir()
        words = ["launch", str(program("holder").image), "--id", enclave, "--memory", "128MiB"]
        words += ["--dir", str(own), *options, "--", what, *([path] if path else [])]
        launched = ctl(pair[0], *words)
        assert launched.code == 0, launched
        for piece in pair[0].client.logs(enclave, follow=True):
            if b"holding" in piece:
                break
        held.append((enclave, what, own))
        return enclave

    yield start
    for enclave, what, own in held:
        status = pair[0].client.status(enclave)
        assert (status["state"], status["host"]) == ("running", "alpha")
        (own / "stop").touch()
        assert pair[0].client.wait(enclave)["exit_status"] == 0
        assert b"".join(pair[0].client.logs(enclave)).endswith(f"answer held {what}\n".encode())


def refused(outcome: Outcome, code: str) -> Outcome:
    """It was refused before anything was done, with that error."""
    assert (outcome.code, outcome.error["code"]) == (REFUSED, code), outcome
    assert len(outcome.error["message"]) > 20
    return outcome


def test_unknown_enclave(pair: tuple[Host, Host]) -> None:
    outcome = refused(ctl(pair[0], "migrate", "nobody", "beta"), "unknown-enclave")
    assert "nobody" in outcome.error["message"]
    assert ctl(pair[0], "status", "nobody").code == REFUSED


def test_unknown_host(pair: tuple[Host, Host], hold: Hold) -> None:
    outcome = refused(ctl(pair[0], "migrate", hold(), "nowhere"), "unknown-host")
    assert "nowhere" in outcome.error["message"]
    assert "beta" in outcome.error["message"], "it names the hosts that are known"


def test_host_down(pair: tuple[Host, Host], hold: Hold) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    key = "A" * 43 + "="
    assert ctl(pair[0], "host", "add", "down", address, key).code == 0
    outcome = refused(ctl(pair[0], "migrate", hold(), "down"), "host-unreachable")
    assert address in outcome.error["message"]
    assert ctl(pair[0], "host", "remove", "down").code == 0


def test_wrong_host_key(pair: tuple[Host, Host], hold: Hold) -> None:
    identity = pair[1].client.host_identity()
    other = "A" * 42 + "E="
    assert ctl(pair[0], "host", "remove", "beta").code == 0
    try:
        assert ctl(pair[0], "host", "add", "beta", identity["listen"], other).code == 0
        refused(ctl(pair[0], "migrate", hold(), "beta"), "host-key-mismatch")
    finally:
        pair[0].client.host_add("beta", identity["listen"], identity["key"])


def test_a_host_that_does_not_know_us(pair: tuple[Host, Host], hold: Hold) -> None:
    identity = pair[0].client.host_identity()
    pair[1].client.host_remove("alpha")
    try:
        outcome = ctl(pair[0], "migrate", hold(), "beta")
        assert outcome.code == REFUSED
        assert outcome.error["code"] in ("handshake-failed", "unknown-host", "host-key-mismatch")
    finally:
        pair[1].client.host_add("alpha", identity["listen"], identity["key"])


def test_evidence_that_the_policy_forbids(
    pair: tuple[Host, Host], hold: Hold, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('platforms = ["sgx"]\n')
    enclave = hold("nothing", "", "--policy", str(policy))
    outcome = ctl(pair[0], "migrate", enclave, "beta")
    assert outcome.code == REFUSED, outcome
    assert "sim" in outcome.stdout


def test_a_measurement_that_the_policy_does_not_list(
    pair: tuple[Host, Host], hold: Hold, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'measurements = ["{"ab" * 32}"]\n')
    enclave = hold("nothing", "", "--policy", str(policy))
    outcome = ctl(pair[0], "migrate", enclave, "beta")
    assert outcome.code == REFUSED, outcome
    assert "measurement" in outcome.stdout


@pytest.mark.parametrize(
    ("what", "path", "code"),
    [
        ("socket", "", "socket"),
        ("inotify", "", "device"),
        ("deleted", "", "file-deleted"),
        ("outside", "{outside}/written", "file-writable"),
    ],
)
def test_a_resource_that_cannot_travel(
    what: str, path: str, code: str, pair: tuple[Host, Host], hold: Hold, tmp_path: Path
) -> None:
    enclave = hold(what, path.format(outside=tmp_path))
    checked = ctl(pair[0], "check", enclave, "beta")
    assert checked.code == REFUSED
    for outcome in (checked, refused(ctl(pair[0], "migrate", enclave, "beta"), "blocked")):
        assert outcome.blocker_codes == {code}
    plain = ctl(pair[0], "migrate", enclave, "beta", json_output=False)
    assert plain.code == REFUSED
    assert code in plain.stderr + plain.stdout


def test_what_is_held_is_named_with_the_place_that_made_it(
    pair: tuple[Host, Host], hold: Hold
) -> None:
    plain = ctl(pair[0], "migrate", hold("socket", ""), "beta", json_output=False)
    assert plain.code == REFUSED
    told = " ".join((plain.stderr + plain.stdout).split())
    assert "made by socket() at socket+0x" in told
    assert "< take_a_socket+0x" in told


def test_a_call_that_the_program_can_do_without_is_a_note_and_no_blocker(
    pair: tuple[Host, Host], hold: Hold
) -> None:
    enclave = hold("message-queue", "")
    plain = ctl(pair[0], "check", enclave, "beta", json_output=False)
    assert plain.code == 0, plain
    assert "note: mq_open() at syscall+0x" in plain.stdout
    assert "standard streams" in plain.stdout
    answer = pair[0].client.check(enclave, "beta")
    assert [refused["call"] for refused in answer["refused_calls"]] == ["mq_open"]
    assert "try_a_message_queue" in answer["refused_calls"][0]["place"]
    assert answer["holds"]["descriptors"] == {"standard streams": 3}
    assert answer["holds"]["threads"] == {"threads": 1}


def two_mounts() -> tuple[str, ...]:
    """A command that runs a daemon with a mount namespace of its own, or a skip."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    ordinary_user()
    return ("unshare", "--user", "--map-root-user", "--mount", "--")


@pytest.fixture
def hosts_with_other_files(tmp_path: Path) -> Iterator[tuple[Host, Host, Path]]:
    """Two hosts of which the second sees another folder at the same path, and another CPU."""
    seen, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    seen.mkdir()
    elsewhere.mkdir()
    cpu = tmp_path / "cpuinfo"
    text = Path("/proc/cpuinfo").read_text()
    cpu.write_text(text.replace(" avx2", "").replace(" bmi2", ""))
    script = f'mount --bind {elsewhere} {seen} && mount --bind {cpu} /proc/cpuinfo && exec "$@"'
    prefixes = ((), (*two_mounts(), "sh", "-c", script, "sh"))
    with ExitStack() as cleanup:
        hosts = []
        for name, prefix in zip(("alpha", "beta"), prefixes, strict=True):
            hosts.append(start_host(name, tmp_path / name, prefix=prefix))
            cleanup.callback(stop_host, hosts[-1])
        introduce(hosts)
        yield hosts[0], hosts[1], seen


def test_another_file_and_a_missing_cpu_feature_are_all_named_at_once(
    program: BuildProgram, hosts_with_other_files: tuple[Host, Host, Path], tmp_path: Path
) -> None:
    alpha, beta, data = hosts_with_other_files
    (data / "input").write_bytes(b"one content")
    (tmp_path / "elsewhere" / "input").write_bytes(b"one Content")
    launched = ctl(
        *(alpha, "launch", str(program("holder").image), "--id", "reader"),
        *("--memory", "128MiB", "--", "read", str(data / "input")),
    )
    assert launched.code == 0, launched
    for piece in alpha.client.logs("reader", follow=True):
        if b"holding" in piece:
            break
    outcome = refused(ctl(alpha, "migrate", "reader", "beta"), "blocked")
    assert outcome.blocker_codes == {"file-different", "cpu-features"}
    assert "avx2" in outcome.stdout
    (tmp_path / "elsewhere" / "input").unlink()
    checked = ctl(alpha, "check", "reader", "beta")
    assert checked.code == REFUSED
    assert checked.blocker_codes == {"file-absent", "cpu-features"}
    assert alpha.client.status("reader")["state"] == "running"
    # The operator has the answer as soon as it is known; beta may still be tidying up.
    deadline = time.monotonic() + 20
    while beta.client.list_enclaves() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert beta.client.list_enclaves() == []


def test_too_little_memory_on_the_destination(
    program: BuildProgram, tmp_path: Path, pair: tuple[Host, Host], hold: Hold
) -> None:
    small = start_host("small", tmp_path / "small")
    stop_host(small)
    config = tmp_path / "small" / "optmigd.toml"
    config.write_text(config.read_text() + "\n[limits]\nmax_memory_bytes = 67108864\n")
    small = start_host("small", tmp_path / "small")
    try:
        identity = small.client.host_identity()
        pair[0].client.host_add("small", identity["listen"], identity["key"])
        known = pair[0].client.host_identity()
        small.client.host_add("alpha", known["listen"], known["key"])
        outcome = refused(ctl(pair[0], "migrate", hold(), "small"), "blocked")
        assert outcome.blocker_codes == {"memory"}
    finally:
        pair[0].client.host_remove("small")
        stop_host(small)


def test_a_corrupt_image(pair: tuple[Host, Host], program: BuildProgram, tmp_path: Path) -> None:
    content = bytearray(program("holder").image.read_bytes())
    content[0x40 : 0x40 + 5 * 56] = b"\xff" * 5 * 56  # the program headers
    broken = tmp_path / "broken.image"
    broken.write_bytes(content)
    refused(ctl(pair[0], "launch", str(broken)), "image-invalid")
    native = ctl(pair[0], "launch", str(program("holder").native))
    assert "optmig-cc" in refused(native, "image-invalid").error["message"]


def test_a_second_migration_of_the_same_enclave(
    pair: tuple[Host, Host], program: BuildProgram
) -> None:
    words = ("launch", str(program("writer").image), "--id", "busy", "--memory", "512MiB")
    assert ctl(pair[0], *words, "--", "256", "50", "60").code == 0
    for piece in pair[0].client.logs("busy", follow=True):
        if b"filled" in piece:
            break
    # Slow enough that the second request finds the first at work.
    first = ctl(pair[0], "migrate", "busy", "beta", "--max-bandwidth", "20MB/s", "--detach")
    assert first.code == 0, first
    refused(ctl(pair[0], "migrate", "busy", "beta"), "already-migrating")
    assert ctl(pair[0], "cancel", "busy").code == 0
    # The answer to `cancel` is given when the program runs again.
    assert pair[0].client.status("busy")["state"] == "running"
    assert ctl(pair[0], "stop", "busy").code == 0


@pytest.mark.parametrize("which", [b"OPTMIGL1", b"OPTMIGD1"])
@pytest.mark.parametrize("after_bytes", [1_000, 40_000_000, 120_000_000])
def test_a_link_cut_before_release(
    which: bytes, after_bytes: int, program: BuildProgram, fresh_pair: tuple[Host, Host]
) -> None:
    alpha, beta = fresh_pair
    identity = beta.client.host_identity()
    with proxy_to(identity["listen"]) as proxy:
        alpha.client.host_add("beta", proxy.address, identity["key"])
        words = ("launch", str(program("writer").image), "--id", "cut", "--memory", "512MiB")
        assert ctl(alpha, *words, "--", "256", "20", "600").code == 0
        for piece in alpha.client.logs("cut", follow=True):
            if b"filled" in piece:
                break
        cutter = proxy.cut_after(which, after_bytes)
        outcome = ctl(alpha, "migrate", "cut", "beta", "--streams", "2")
        cutter.join()
        assert outcome.code == FAILED, outcome
        assert outcome.error["code"]
        assert alpha.client.status("cut")["state"] == "running"
        again = ctl(alpha, "migrate", "cut", "beta", "--verify")
        assert again.code == 0, again
        assert again.object["verified"] is True
        pauses = b"".join(beta.client.logs("cut")).count(b"longest pause")
        while b"".join(beta.client.logs("cut")).count(b"longest pause") < pauses + 2:
            time.sleep(0.05)  # it says so every second: it runs on
        assert ctl(beta, "stop", "cut").code == 0
