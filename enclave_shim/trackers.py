"""Which tracker an enclave is moved with: by choice, by what host and image have."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.compiler_tracker import CompilerTracker, marks_itself
from optmigd.enclave_shim.image import Image
from optmigd.enclave_shim.tracker import KernelTracker, Tracked, Tracker, no_pause, probe
from optmigd.protocol.errors import TrackerUnavailable


class Wanted(IntEnum):
    """`rt_state.tracker`: what was asked for at launch; it travels with the enclave."""

    AUTO = 0
    KERNEL = 1
    COMPILER = 2


class Trackable(Protocol):
    """What is needed of an enclave (see `migration.common.Enclave`)."""

    @property
    def arena(self) -> Arena:
        """Its memory."""

    @property
    def process(self) -> Tracked:
        """Its process."""

    @property
    def image(self) -> Image:
        """What it runs."""


def missing(enclave: Trackable) -> tuple[str, str]:
    """The tracker that this enclave is moved with, and why it does not work ("" if it does).

    The kernel's by default; the program's own marks where the kernel has none, or on request.
    """
    wanted = Wanted(int(enclave.arena.rt_state["tracker"]))
    kernel = probe(enclave.process)
    marks = _why_no_marks(enclave)
    if wanted is Wanted.COMPILER or (wanted is Wanted.AUTO and kernel and not marks):
        return "compiler", marks
    return "kernel", kernel


def name_of(enclave: Trackable) -> str:
    """The tracker that a migration would use now, or "none"."""
    name, why = missing(enclave)
    return "none" if why else name


def make_tracker(enclave: Trackable, pause: Callable[[], None] = no_pause) -> Tracker:
    """A tracker for a migration, not armed yet.

    Args:
        enclave: whose.
        pause: called now and then during long work while the program runs; it may block.

    Raises:
        TrackerUnavailable: there is none for this enclave on this host.
    """
    name, why = missing(enclave)
    if why:
        raise TrackerUnavailable(why)
    if name == "compiler":
        return CompilerTracker(enclave.process, enclave.arena)
    return KernelTracker(enclave.process, enclave.arena, pause)


def _why_no_marks(enclave: Trackable) -> str:
    if not marks_itself(enclave.process):
        return "the image was not built for the compiler tracker (optmig-cc --tracker=compiler)"
    blockers = enclave.image.mark_blockers
    if blockers:
        listed = "; ".join(blockers[:5])
        return f"parts of the image do not mark what they write: {listed}"
    return ""
