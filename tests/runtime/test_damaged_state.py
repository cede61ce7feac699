"""A travelling state that was damaged is refused by the runtime, with a text, before anything runs.

The source is attested and the records are sealed, so no attacker gets this far as long as both
hold. Here a real program is parked once, and its memory restored again and again with one thing
changed: by hand where a check must catch it, and at random. Whatever it is, the fresh process
refuses by name or is prepared; it never dies of it, and touches no file outside.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.abi import Command, Mode, OfdKind
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.process import Process
from optmigd.protocol.errors import RuntimeFailed
from tests.runtime.conftest import MEMORY_BYTES, Parked
from tests.support.instances import with_process

RANDOM_DAMAGES = int(os.environ.get("DAMAGES", "150"))
ALT_STACKS_PAGE = abi.RT_STATE_BYTES // abi.PAGE_BYTES
U64 = 2**64 - 1
FIELDS_BYTES = {name: int(at[1]) for name, at in (abi.RT_STATE.fields or {}).items()}["sigactions"]

State = Any
Damage = Callable[[State, "Frame"], None]


class Frame:
    """The parked frame of the first thread, as 64-bit words; see `struct rt_ucontext`."""

    FPSTATE, RIP, SELECTORS, SIGMASK = 28, 21, 23, 37
    """Indexes of words: uc_mcontext.fpstate, rip, the word of cs/gs/fs/ss, uc_sigmask."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        address = int(arena.rt_state["threads"][0]["frame"]) - abi.ARENA_BASE
        flat = np.frombuffer(arena.view, dtype=np.uint8)
        self.words = flat[address : address + 400].view("<u8")
        at = int(self.words[self.FPSTATE]) - abi.ARENA_BASE
        self.fp = flat[at : at + 576]


def _restored(parked: Parked, damage: Damage) -> str:
    """Damage the memory and prepare it in a fresh process; the refusal's text, or ""."""
    refusal = ""

    async def prepare(process: Process) -> None:
        nonlocal refusal
        try:
            await process.command(Command.PREPARE)
        except RuntimeFailed:
            refusal = process.ctl.error_text or DIED

    arena = parked.arena()
    damage(arena.rt_state, Frame(arena))
    trio.run(
        with_process, parked.keeper, arena, Mode.RESTORE, parked.image, parked.start(), prepare
    )
    assert parked.outside.read_bytes() == b"precious content"
    assert parked.shared.read_bytes() == b"shared content"
    assert (parked.own / "own.txt").read_bytes() == b"0123456789"
    assert refusal != DIED
    return refusal


def test_what_was_not_damaged_runs_to_its_end(parked: Parked) -> None:
    async def run(process: Process) -> None:
        await process.command(Command.PREPARE)
        await process.command(Command.RUN)
        (parked.own / "stop").touch()
        await process.exited.wait()
        assert process.exit_status == 0

    trio.run(
        with_process,
        parked.keeper,
        parked.arena(),
        Mode.RESTORE,
        parked.image,
        parked.start(),
        run,
    )
    (parked.own / "stop").unlink()
    assert (
        (parked.own.parent / "output.log")
        .read_bytes()
        .endswith(b"ready\nin the pipemessage\noffset 10\n")
    )


def test_a_thread_that_was_about_to_end_ends_here(parked: Parked) -> None:
    arena = parked.arena()
    slot, joined = arena.rt_state["threads"][5], 6 * ALT_STACK_BYTES + 64
    slot["used"], slot["vtid"] = 2, 99
    slot["stack_low"], slot["stack_bytes"] = STACK + 5 * ALT_STACK_BYTES, ALT_STACK_BYTES
    slot["clear_child_tid"] = STACK + joined
    word = np.frombuffer(arena.view, np.uint8)[abi.RT_STATE_BYTES :][joined : joined + 4]
    word[:] = 1

    async def run(process: Process) -> None:
        await process.command(Command.PREPARE)
        await process.command(Command.RUN)
        with trio.fail_after(20):
            while word.any() or slot["used"]:  # noqa: ASYNC110 (no event tells of it)
                await trio.sleep(0.01)
        (parked.own / "stop").touch()
        await process.exited.wait()
        assert process.exit_status == 0

    trio.run(with_process, parked.keeper, arena, Mode.RESTORE, parked.image, parked.start(), run)
    (parked.own / "stop").unlink()


def _set(field: str, value: object) -> Damage:
    def damage(state: State, frame: Frame) -> None:
        state[field] = value

    return damage


def _set_in(table: str, index: int, field: str, value: object) -> Damage:
    def damage(state: State, frame: Frame) -> None:
        state[table][index][field] = value

    return damage


def _set_word(index: int, value: int) -> Damage:
    def damage(state: State, frame: Frame) -> None:
        frame.words[index] = value

    return damage


def _set_fp(offset: int, value: int, size: int = 4) -> Damage:
    def damage(state: State, frame: Frame) -> None:
        frame.fp[offset : offset + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)

    return damage


def _ofd(kind: OfdKind, field: str, value: object) -> Damage:
    """Change the first open file of a kind."""

    def damage(state: State, frame: Frame) -> None:
        used = (state["ofds"]["kind"] == kind) & (state["ofds"]["refs"] > 0)
        state["ofds"][int(np.flatnonzero(used)[0])][field] = value

    return damage


def _object(kind: OfdKind, field: str, value: object) -> Damage:
    """Change the object of the first open description of a kind."""

    def damage(state: State, frame: Frame) -> None:
        used = (state["ofds"]["kind"] == kind) & (state["ofds"]["refs"] > 0)
        state["ofds"][int(np.flatnonzero(used)[0])]["object"][field] = value

    return damage


def _message_too_long(state: State, frame: Frame) -> None:
    filled = state["ofds"]["object"]["messages"] * state["ofds"]["object"]["content_bytes"] > 0
    at = int(state["ofds"]["object"]["content"][filled][0])
    state["content"][at : at + 4] = 255


def _listing_end(state: State, frame: Frame) -> None:
    objects = state["ofds"]["object"]
    listed = (state["ofds"]["kind"] == OfdKind.OWN) & (objects["due_ns"] > 0)
    objects["due_ns"][int(np.flatnonzero(listed)[0])] = 1 << 40


def _all_paths_unended(state: State, frame: Frame) -> None:
    state["cwd"] = b"/" * abi.RT_PATH_BYTES


DIED = "(it died instead of refusing)"
STACK = abi.ARENA_BASE + abi.RT_STATE_BYTES
ALT_STACK_BYTES = 256 << 10
LAID_OUT, BOUNDS, PATHS = "laid out for another image", "out of bounds", "path of the travelling"
FRAME, THREADS = "frame of a parked thread", "table of threads"
FDS, FILES, MAPPINGS = "descriptor", "open files", "mappings"

DAMAGES: dict[str, tuple[Damage, str]] = {
    "magic": (_set("magic", 0), "version and size"),
    "version": (_set("abi_version", 99), "version and size"),
    "size": (_set("arena_bytes", MEMORY_BYTES * 2), "version and size"),
    "low": (_set("low", STACK), LAID_OUT),
    "data-start": (_set("data_start", 0x10000), LAID_OUT),
    "data-end": (_set("data_end", U64), LAID_OUT),
    "data-copy": (_set("data_copy", 0), LAID_OUT),
    "high": (_set("high", U64), BOUNDS),
    "brk-beyond": (_set("brk_now", U64), BOUNDS),
    "brk-below": (_set("brk_start", 0), BOUNDS),
    "vma-count": (_set("vma_count", abi.RT_MAX_VMAS + 1), BOUNDS),
    "fd-high": (_set("fd_high", abi.RT_MAX_FDS + 1), BOUNDS),
    "fd-high-low": (_set("fd_high", 2), FDS),
    "shared-count": (_set("shared_count", 33), BOUNDS),
    "shared-offset": (_set("shared_off", [8192] + [0] * 31), BOUNDS),
    "own-id": (_set("vpid", -1), BOUNDS),
    "lock": (_set("lock", 1), THREADS),
    "thread-count": (_set("thread_count", 2), THREADS),
    "pending-kill": (_set("proc_pending", 1 << 8), "pending"),
    "cwd-unended": (_all_paths_unended, PATHS),
    "cwd-relative": (_set("cwd", b"x"), PATHS),
    "own-dir-empty": (_set("own_dir", b""), PATHS),
    "not-parked": (_set_in("threads", 0, "parked", 0), FRAME),
    "frame-wraps": (_set_in("threads", 0, "frame", U64 - 7), FRAME),
    "frame-zero": (_set_in("threads", 0, "frame", 0), FRAME),
    "frame-of-another": (_set_in("threads", 1, "frame", STACK + (128 << 10)), FRAME),
    "frame-at-the-end": (_set_in("threads", 0, "frame", STACK + (256 << 10) - 8), FRAME),
    "frame-uneven": (_set_in("threads", 0, "frame", STACK + (128 << 10) + 1), FRAME),
    "end-of-no-thread": (_set_in("threads", 7, "used", 2), "end of a thread"),
    "slot-of-no-kind": (_set_in("threads", 7, "used", 3), FRAME),
    "stack": (_set_in("threads", 0, "stack_low", STACK + 4096), FRAME),
    "fs-base": (_set_in("threads", 0, "fs_base", 1 << 63), FRAME),
    "thread-id": (_set_in("threads", 1, "vtid", -5), FRAME),
    "thread-pending-stop": (_set_in("threads", 0, "pending", 1 << 18), FRAME),
    "thread-out-of-nothing": (_set_in("threads", 200, "used", 1), FRAME),
    "alternate-stack": (_set_word(2, STACK + 4096), FRAME),
    "alternate-stack-size": (_set_word(4, U64), FRAME),
    "rip": (_set_word(Frame.RIP, 1 << 63), FRAME),
    "selectors": (_set_word(Frame.SELECTORS, U64), FRAME),
    "fp-elsewhere": (_set_word(Frame.FPSTATE, 0x1000), FRAME),
    "fp-uneven": (_set_word(Frame.FPSTATE, STACK + (200 << 10) + 1), FRAME),
    "mxcsr": (_set_fp(24, 0xFFFFFFFF), FRAME),
    "fp-magic": (_set_fp(464, 0), FRAME),
    "fp-size": (_set_fp(468, 0xFFFFFFFF), FRAME),
    "fp-xstate-size": (_set_fp(480, 0xFFFFFFFF), FRAME),
    "xstate-features": (_set_fp(512, U64, 8), FRAME),
    "xstate-compacted": (_set_fp(520, 1 << 63, 8), FRAME),
    "fd-state": (_set_in("fds", 3, "state", 7), FDS),
    "fd-description": (_set_in("fds", 3, "ofd", 0xFFFFFFFF), FDS),
    "fd-out-of-nothing": (_set_in("fds", 999, "state", 1), FDS),
    "refs": (_ofd(OfdKind.OWN, "refs", 1), "does not fit"),
    "kind": (_ofd(OfdKind.OWN, "kind", 99), FILES),
    "blocker": (_ofd(OfdKind.OWN, "kind", OfdKind.BLOCKER), FILES),
    "own-absolute": (_ofd(OfdKind.OWN, "path", b"/etc/passwd"), FILES),
    "own-above": (_ofd(OfdKind.OWN, "path", b"../outside"), "could not be opened again"),
    "own-truncates": (_ofd(OfdKind.OWN, "flags", os.O_RDWR | os.O_TRUNC), FILES),
    "own-creates": (_ofd(OfdKind.OWN, "flags", os.O_RDWR | os.O_CREAT), FILES),
    "own-offset": (_ofd(OfdKind.OWN, "offset", -1), FILES),
    "own-unended": (_ofd(OfdKind.OWN, "path", b"x" * abi.RT_PATH_BYTES), FILES),
    "external-written": (_ofd(OfdKind.EXTERNAL, "flags", os.O_WRONLY), FILES),
    "external-truncated": (_ofd(OfdKind.EXTERNAL, "flags", os.O_RDONLY | os.O_TRUNC), FILES),
    "external-relative": (_ofd(OfdKind.EXTERNAL, "path", b"outside"), FILES),
    "external-device": (_ofd(OfdKind.EXTERNAL, "kind", OfdKind.DEVICE), FILES),
    "external-shared": (_ofd(OfdKind.EXTERNAL, "kind", OfdKind.SHARED), FILES),
    "shared-locked": (_ofd(OfdKind.SHARED, "blocker", 3), FILES),
    "device-elsewhere": (_ofd(OfdKind.DEVICE, "path", b"/dev/sda"), FILES),
    "device-by-detour": (_ofd(OfdKind.DEVICE, "path", b"/dev/../dev/null"), FILES),
    "pipe-peer": (_object(OfdKind.PIPE, "peer", 4_000_000_000), FILES),
    "pipe-peer-is-itself": (_object(OfdKind.PIPE, "peer", 1), FILES),
    "pipe-flags": (_ofd(OfdKind.PIPE, "flags", os.O_RDWR), FILES),
    "pipe-content-beyond": (_object(OfdKind.PIPE, "content", 1 << 31), FILES),
    "pipe-content-long": (_object(OfdKind.PIPE, "content_bytes", 1 << 31), FILES),
    "pipe-capacity": (_object(OfdKind.PIPE, "value", 1 << 60), FILES),
    "content-used": (_set("content_used", 1 << 31), FILES),
    "socket-type": (_object(OfdKind.SOCKETPAIR, "type", 3), FILES),
    "socket-shut": (_object(OfdKind.SOCKETPAIR, "shut", 9), FILES),
    "socket-message-too-long": (_message_too_long, FILES),
    "eventfd-count": (_object(OfdKind.EVENTFD, "value", U64), FILES),
    "timer-interval": (_object(OfdKind.TIMERFD, "interval_ns", -1), FILES),
    "timer-clock": (_object(OfdKind.TIMERFD, "type", 5), FILES),
    "signalfd-mask": (_object(OfdKind.SIGNALFD, "value", U64), FILES),
    "view-content": (_object(OfdKind.VIEW, "content_bytes", 1 << 31), FILES),
    "view-offset": (_ofd(OfdKind.VIEW, "offset", -1), FILES),
    "listing-elsewhere": (_object(OfdKind.OWN, "value", 0x1000), FILES),
    "listing-end": (_listing_end, FILES),
    "affinity": (_set_in("threads", 0, "affinity_bytes", 4096), FRAME),
    "thread-name": (_set_in("threads", 0, "name", b"x" * 16), FRAME),
    "watch-count": (_set("watch_high", 4_000_000_000), "registrations"),
    "watch-target": (_set_in("watches", 0, "target", 900), "registrations"),
    "watch-instance": (_set_in("watches", 0, "epoll", 1), "registrations"),
    "vma-reversed": (_set_in("vmas", 1, "end", 0), MAPPINGS),
    "vma-over-the-runtime": (_set_in("vmas", 0, "start", 0x10000), MAPPINGS),
    "vma-protection": (_set_in("vmas", 1, "prot", 0xFF), MAPPINGS),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_with_a_text(parked: Parked, name: str) -> None:
    damage, text = DAMAGES[name]
    assert text in _restored(parked, damage)


def test_a_link_in_the_own_directory_leads_nowhere(parked: Parked) -> None:
    (parked.own / "planted").symlink_to(parked.outside)
    try:
        refusal = _restored(parked, _ofd(OfdKind.OWN, "path", b"planted"))
    finally:
        (parked.own / "planted").unlink()
    assert "could not be opened again: planted" in refusal


def _flip(chance: random.Random, state: State, frame: Frame) -> None:
    """Change a few bytes of one of: a used table, the frame, or the fields before the tables."""
    fields = np.frombuffer(frame.arena.view, np.uint8)[:FIELDS_BYTES]
    targets = (
        fields,
        state["threads"][:3].view(np.uint8),
        state["fds"][:16].view(np.uint8),
        state["ofds"][: int((state["ofds"]["refs"] > 0).sum())].view(np.uint8),
        state["vmas"][: int(state["vma_count"])].view(np.uint8),
        frame.words.view(np.uint8),
        frame.fp,
    )
    content = chance.choice(targets)
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.randrange(256)


def test_damage_at_random_never_kills_and_touches_nothing_outside(parked: Parked) -> None:
    seed = int(os.environ.get("DAMAGE_SEED", "0")) or random.SystemRandom().randrange(2**32)
    print(f"DAMAGE_SEED={seed}")
    chance = random.Random(seed)
    refused = 0
    for _ in range(RANDOM_DAMAGES):
        refused += bool(_restored(parked, lambda state, frame: _flip(chance, state, frame)))
    assert refused > RANDOM_DAMAGES // 10
