"""Compile the C runtime once per compiler and source, and keep the objects in the user's cache.

The sources ship as package data; nothing is compiled when the Python package is installed. The
cache's folder is named by a digest of sources, flags and compiler, so a stale object cannot be
linked; it appears by one rename, so two compilers at once do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

RUNTIME_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g0",
    "-ffreestanding",  # no libc: it runs before libc, and inside signal handlers
    "-fno-builtin",
    "-fno-stack-protector",  # the canary lives in libc's TLS
    "-fno-sanitize=all",
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",  # the program's vector registers are not ours
    "-Wall",
    "-Wextra",
    "-Werror",
)


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "optmigd"


def _sources() -> dict[str, bytes]:
    folder = resources.files("optmigd.enclave_shim.runtime")
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith((".c", ".h"))
    }


def runtime_objects(compiler: Sequence[str], compiler_version: str) -> list[Path]:
    """The runtime's object files, compiled now if they are not in the cache.

    Args:
        compiler: the compiler's command with its target.
        compiler_version: what tells this compiler from another; part of the cache's name.

    Raises:
        subprocess.CalledProcessError: the compiler refused the runtime; its words are on stderr.
    """
    sources = _sources()
    digest = hashlib.sha256(repr((compiler_version, RUNTIME_FLAGS)).encode())
    for name, text in sources.items():
        digest.update(f"{name} {len(text)}\0".encode() + text)
    folder = _cache_root() / f"runtime-{digest.hexdigest()[:24]}"
    units = [name for name in sources if name.endswith(".c")]
    if not folder.is_dir():
        _compile(compiler, sources, units, folder)
    return [folder / f"{name}.o" for name in units]


def _compile(
    compiler: Sequence[str], sources: dict[str, bytes], units: Sequence[str], folder: Path
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="runtime-", dir=folder.parent))
    try:
        for name, text in sources.items():
            (work / name).write_bytes(text)
        for name in units:
            command = [*compiler, *RUNTIME_FLAGS, "-c", name, "-o", f"{name}.o"]
            subprocess.run(command, cwd=work, check=True)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise somebody else was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
