"""Travelling files: deltas reproduce the directory, and nothing is written outside of it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.enclave_shim.beneath import checked_parts
from optmigd.enclave_shim.file_receiver import FileReceiver
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.records import FileMeta

CHUNK = 4096


def bring_up_to_date(files: TravellingFiles, receiver: FileReceiver) -> list[FileMeta]:
    """Apply what differs; the steps it took."""
    steps = []
    for change, content in files.delta():
        receiver.apply(change, content)
        steps.append(change)
    return steps


class Trip:
    """A source directory, its copy, and the machinery between."""

    def __init__(self, tmp_path: Path) -> None:
        self.own, self.copy, self.io_dir = (tmp_path / name for name in ("own", "copy", "io"))
        self.output = tmp_path / "output.log"
        for directory in (self.own, self.copy, self.io_dir):
            directory.mkdir()
        self.output.touch()
        self.files = TravellingFiles(self.own, {"output.log": self.output}, CHUNK)
        self.receiver = FileReceiver(self.copy, self.io_dir)

    def send(self) -> list[FileMeta]:
        """Bring the copy up to date; the steps it took."""
        return bring_up_to_date(self.files, self.receiver)


def tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("dir", path.stat().st_mode)
        else:
            status = path.stat()
            found[name] = (path.read_bytes(), status.st_mode, status.st_mtime_ns)
    return found


@pytest.fixture
def trip(tmp_path: Path) -> Trip:
    return Trip(tmp_path)


def test_the_copy_follows_every_change(trip: Trip) -> None:
    own = trip.own
    (own / "a").write_bytes(os.urandom(3 * CHUNK + 10))
    (own / "empty").touch()
    (own / "d/e").mkdir(parents=True)
    (own / "d/e/f").write_bytes(b"x")
    (own / "link").symlink_to("/etc/passwd")
    (own / "run.sh").write_bytes(b"#!")
    (own / "run.sh").chmod(0o755)
    trip.send()
    assert tree(trip.copy) == tree(own)

    with open(own / "a", "r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"changed")
    (own / "empty").write_bytes(b"no more")
    (own / "d/e/f").unlink()
    (own / "d/e").rmdir()
    (own / "d/e").write_bytes(b"a file where a directory was")
    (own / "link").unlink()
    (own / "link").symlink_to("elsewhere")
    (own / "run.sh").rename(own / "d/run.sh")
    steps = trip.send()
    assert tree(trip.copy) == tree(own)
    assert [s.offset for s in steps if s.path == "a" and s.op == "write"] == [CHUNK]

    with open(own / "a", "r+b") as file:
        file.truncate(CHUNK // 2)
    trip.send()
    assert tree(trip.copy) == tree(own)


def test_a_change_within_the_same_tick_is_seen(trip: Trip) -> None:
    path = trip.own / "a"
    for round_no in range(20):
        path.write_bytes(b"%04d" % round_no)
        status = path.stat()
        trip.send()
        path.write_bytes(b"%04d" % (round_no + 1000))
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        trip.send()
        assert (trip.copy / "a").read_bytes() == b"%04d" % (round_no + 1000)


def test_nothing_is_sent_twice(trip: Trip) -> None:
    (trip.own / "a").write_bytes(b"x" * 10 * CHUNK)
    trip.send()
    assert [step for step in trip.send() if step.op == "write"] == []


def test_output_grows_by_its_end_alone(trip: Trip) -> None:
    trip.output.write_bytes(b"o" * (3 * CHUNK + 1))
    trip.send()
    with open(trip.output, "ab") as file:
        file.write(b"more")
    steps = trip.send()
    assert [s.offset for s in steps if s.root == "io" and s.op == "write"] == [3 * CHUNK]
    assert (trip.io_dir / "output.log").read_bytes() == trip.output.read_bytes()


def test_files_that_vanish_while_we_look_are_no_error(trip: Trip) -> None:
    for name in ("a", "b", "c"):
        (trip.own / name).write_bytes(b"x" * CHUNK)
    (trip.own / "d").mkdir()
    (trip.own / "d/e").write_bytes(b"x")
    trip.send()
    for name in ("a", "b", "c", "d/e"):
        (trip.own / name).write_bytes(b"y" * CHUNK)
    (trip.own / "new").write_bytes(b"z")
    delta = trip.files.delta()
    trip.receiver.apply(*next(delta))  # the walk is done, the first file is being sent
    (trip.own / "b").unlink()
    (trip.own / "c").unlink()
    (trip.own / "c").symlink_to("a")
    (trip.own / "d/e").unlink()
    (trip.own / "d").rmdir()
    (trip.own / "new").unlink()
    for change, content in delta:
        trip.receiver.apply(change, content)
    trip.send()
    assert tree(trip.copy) == tree(trip.own)


def test_what_cannot_travel_is_named(trip: Trip) -> None:
    os.mkfifo(trip.own / "fifo")
    (trip.own / "a").touch()
    os.link(trip.own / "a", trip.own / "b")
    (trip.own / os.fsdecode(b"\xff\xfe")).touch()
    subjects = {blocker.subject for blocker in trip.files.blockers()}
    assert {"own:fifo", "own:a", "own:b"} < subjects
    assert len(subjects) == 4


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a\0b", "a/" * 65 + "b"]
)
def test_paths_that_lead_out_are_refused(trip: Trip, path: str) -> None:
    with pytest.raises(RemoteProtocolError):
        trip.receiver.apply(FileMeta("own", path, "write"), b"bad")


@given(st.text(alphabet="ab./\0", max_size=12))
def test_a_checked_path_stays_below(path: str) -> None:
    try:
        parts = checked_parts(path)
    except RemoteProtocolError:
        return
    assert os.path.normpath(path) == path == "/".join(parts)
    assert not path.startswith("/")


@pytest.mark.parametrize(
    ("path", "op"), [("agent.log", "write"), ("output.log", "delete"), ("a/stdin", "write")]
)
def test_only_output_and_stdin_exist_in_the_io_root(trip: Trip, path: str, op: str) -> None:
    (trip.io_dir / "output.log").touch()
    with pytest.raises(RemoteProtocolError):
        trip.receiver.apply(FileMeta("io", path, op), b"")  # type: ignore[arg-type]
    assert [item.name for item in trip.io_dir.iterdir()] == ["output.log"]


@pytest.mark.parametrize("op", ["write", "truncate", "meta"])
def test_a_planted_link_is_not_followed(trip: Trip, tmp_path: Path, op: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    victim.chmod(0o600)
    trip.receiver.apply(FileMeta("own", "trap", "symlink", target=str(victim)), b"")
    trip.receiver.apply(FileMeta("own", "dirtrap", "symlink", target=str(tmp_path)), b"")
    for path in ("trap", "dirtrap/victim"):
        change = FileMeta("own", path, op, mode=0o777)  # type: ignore[arg-type]
        with pytest.raises(OSError):
            trip.receiver.apply(change, b"x" if op == "write" else b"")
    assert victim.read_bytes() == b"untouched"
    assert victim.stat().st_mode & 0o777 == 0o600
