"""Preflight: the program's file table becomes blockers and needs, checked on the other side."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from optmigd.enclave_shim import cpu, preflight
from optmigd.enclave_shim.abi import FD_OPEN, OfdKind
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.preflight import DigestCache, check_needs, file_needs, open_files
from optmigd.protocol.session import FileNeed


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(16 << 20)
    yield made
    made.close()


def hold(arena: Arena, fd: int, kind: OfdKind, path: str, blocker: int = 0) -> None:
    state = arena.rt_state
    state["fds"][fd]["state"] = FD_OPEN
    state["fds"][fd]["ofd"] = fd
    state["ofds"][fd]["kind"] = kind
    # What follows the NUL is left over from an earlier, longer path.
    state["ofds"][fd]["path"] = path.encode() + b"\0stale"
    state["ofds"][fd]["blocker"] = blocker
    state["fd_high"] = max(int(state["fd_high"]), fd + 1)


def test_what_the_program_holds_is_sorted_into_blockers_and_needs(arena: Arena) -> None:
    hold(arena, 0, OfdKind.STDIN, "stdin")
    hold(arena, 1, OfdKind.OUTPUT, "output")
    hold(arena, 3, OfdKind.BLOCKER, "socket")
    hold(arena, 4, OfdKind.OWN, "a/b", blocker=1)
    hold(arena, 5, OfdKind.EXTERNAL, "/etc/x", blocker=4)
    hold(arena, 6, OfdKind.EXTERNAL, "/etc/hosts")
    hold(arena, 7, OfdKind.EXTERNAL, "/etc/hosts")
    hold(arena, 8, OfdKind.SHARED, "/shared/y")
    hold(arena, 9, OfdKind.DEVICE, "/dev/null")
    hold(arena, 10, OfdKind.BLOCKER, "eventfd")
    found = open_files(arena)
    assert {(b.code, b.subject) for b in found.blockers} == {
        ("socket", "descriptor of socket"),
        ("file-deleted", "a/b"),
        ("file-writable", "/etc/x"),
        ("device", "descriptor of eventfd"),
    }
    assert found.needed == (
        ("device", "/dev/null"),
        ("external", "/etc/hosts"),
        ("shared", "/shared/y"),
    )


def test_a_write_outside_blocks_even_when_the_file_is_closed_again(arena: Arena) -> None:
    arena.rt_state["outside_writes"] = 1
    arena.rt_state["outside_path"] = b"/srv/result"
    assert [(b.code, b.subject) for b in open_files(arena).blockers] == [
        ("file-writable", "/srv/result")
    ]


def test_a_table_out_of_bounds_does_no_harm(arena: Arena) -> None:
    hold(arena, 3, OfdKind.EXTERNAL, "/etc/hosts")
    arena.rt_state["fds"][3]["ofd"] = 4_000_000_000
    arena.rt_state["fd_high"] = 4_000_000_000
    assert open_files(arena).needed == ()


def needs_of(arena: Arena, path: Path) -> list[FileNeed]:
    hold(arena, 3, OfdKind.EXTERNAL, str(path))
    needs, blockers = file_needs(open_files(arena), DigestCache())
    assert blockers == []
    return needs


def test_a_file_that_is_the_same_here_is_no_blocker(arena: Arena, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"the same")
    assert check_needs(needs_of(arena, path), DigestCache()) == []


def test_absent_and_different_files_are_blockers(arena: Arena, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"the same")
    needs = needs_of(arena, path)
    path.write_bytes(b"the SAME")
    assert [b.code for b in check_needs(needs, DigestCache())] == ["file-different"]
    path.write_bytes(b"longer than before")
    assert [b.code for b in check_needs(needs, DigestCache())] == ["file-different"]
    path.unlink()
    assert [b.code for b in check_needs(needs, DigestCache())] == ["file-absent"]
    os.mkfifo(path)
    assert check_needs(needs, DigestCache()) != []


def test_every_missing_thing_is_listed() -> None:
    needs = [
        FileNeed("/absent/shared", "shared", 0, b""),
        FileNeed("/dev/absent", "device", 0, b""),
        FileNeed("/absent/file", "external", 3, bytes(32)),
        FileNeed("relative", "external", 3, bytes(32)),
    ]
    codes = [blocker.code for blocker in check_needs(needs, DigestCache())]
    assert codes == ["shared-absent", "file-absent", "file-absent", "file-absent"]


def test_a_digest_is_computed_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    cache = DigestCache()
    first = cache.digest(str(path))
    assert cache.digest(str(path)) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert cache.digest(str(path)) != first


def test_memory_that_no_host_has_is_a_blocker() -> None:
    assert [b.code for b in preflight.check_memory(1 << 60)] == ["memory"]
    assert preflight.check_memory(0) == []
    assert 0 < preflight.available_bytes() < 1 << 50


def test_cpu_features_are_those_a_program_can_notice() -> None:
    flags = ["fpu", "sse2", "avx2", "avx512f", "constant_tsc", "nopl", "hypervisor", "aes", "ibrs"]
    assert cpu.usable(flags) == ("aes", "avx2", "avx512f", "fpu", "sse2")
    assert cpu.missing(["avx2", "sse2"], ("sse2",)) == ["avx2"]
    assert "sse2" in cpu.features()
    assert 512 < cpu.xsave_bytes() < 1 << 16
