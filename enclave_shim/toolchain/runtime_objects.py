"""Compile what images are linked with, once per compiler and source, into the user's cache.

There are two: the enclave's runtime, which is in every image, and the OpenMP runtime, which is
ordinary code of the program and only there where `-fopenmp` is given (the compiler has none).

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
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from optmigd.enclave_shim.toolchain.marked_compile import compile_source

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

OPENMP_FLAGS = ("-std=gnu11", "-O2", "-g0", "-fno-sanitize=all", "-Wall", "-Wextra", "-Werror")


def cache_root() -> Path:
    """The folder in the user's cache that compiled objects are kept in."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "optmigd"


def _sources(package: str) -> dict[str, bytes]:
    folder = resources.files(package)
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
    folder = _objects("runtime", RUNTIME_FLAGS, compiler, compiler_version)
    return sorted(folder.glob("*.o"))


@dataclass(frozen=True)
class OpenMP:
    """The OpenMP runtime: the folder of its `omp.h`, and its object files."""

    include: Path
    objects: tuple[Path, ...]


def openmp_objects(
    compiler: Sequence[str], compiler_version: str, *, marks: bool = False
) -> OpenMP:
    """The OpenMP runtime, compiled now if it is not in the cache; as `runtime_objects`.

    Args:
        compiler, compiler_version: as for `runtime_objects`.
        marks: for a program that marks its writes.
    """
    folder = _objects("openmp", OPENMP_FLAGS, compiler, compiler_version, marks=marks)
    return OpenMP(folder / "include", tuple(sorted(folder.glob("*.o"))))


def _objects(
    name: str,
    flags: Sequence[str],
    compiler: Sequence[str],
    compiler_version: str,
    *,
    marks: bool = False,
) -> Path:
    sources = _sources(f"optmigd.enclave_shim.{name}")
    digest = hashlib.sha256(repr((compiler_version, flags)).encode())
    for source, text in sources.items():
        digest.update(f"{source} {len(text)}\0".encode() + text)
    if marks:
        digest.update(b"as a library" + pass_digest())
    folder = cache_root() / f"{name}-{digest.hexdigest()[:24]}"
    if not folder.is_dir():
        _compile([*compiler, *flags], sources, folder, marks=marks)
    return folder


def pass_digest() -> bytes:
    """What the marking pass is made of, for the names of what it made."""
    digest = hashlib.sha256()
    for package in ("optmigd.enclave_shim.toolchain.marking", "optmigd.enclave_shim.marks"):
        for entry in sorted(resources.files(package).iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith((".py", ".c", ".h")):
                digest.update(entry.name.encode() + entry.read_bytes())
    return digest.digest()


def _compile(
    compiler: Sequence[str], sources: dict[str, bytes], folder: Path, *, marks: bool
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="objects-", dir=folder.parent))
    try:
        for name, text in sources.items():
            (work / name).write_bytes(text)
        (work / "include").mkdir()
        if "omp.h" in sources:
            (work / "include" / "omp.h").write_bytes(sources["omp.h"])
        for name in sources:
            if name.endswith(".c"):
                if marks:
                    status = compile_source(
                        compiler,
                        str(work / name),
                        [f"-I{work}"],
                        work / f"{name}.o",
                        library=True,
                    )
                    if status:
                        raise subprocess.CalledProcessError(status, compiler)
                    continue
                command = [*compiler, "-c", name, "-o", f"{name}.o"]
                subprocess.run(command, cwd=work, check=True)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise somebody else was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
