"""``optmig-cc``: a compiler driver that turns unmodified C sources into an enclave image.

It behaves as any `cc`: what it does not know it hands to the compiler below, `zig cc` for static
x86-64 musl. It adds to that only what an image needs: when it links, the runtime's objects and
their entry point; and it refuses what cannot be an image (shared objects, say).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optmigd.enclave_shim.toolchain.command_line import answer_to, expanded, translated
from optmigd.enclave_shim.toolchain.marked_build import MarkedBuild
from optmigd.enclave_shim.toolchain.runtime_objects import openmp_objects, runtime_objects

TARGET = ("-target", "x86_64-linux-musl")
# zig's own default is a debug build with traps on undefined behaviour; `cc` has no such default.
PLAIN_COMPILER = ("-fno-sanitize=undefined",)
LINK = ("-static", "-no-pie", "-Wl,-e,optmig_entry")

_NO_LINK = {"-c", "-S", "-E", "-M", "-MM", "-fsyntax-only"}
_ASKS = {"--version", "-dumpversion", "-dumpmachine", "--help", "-###"}
_DROPPED = {"-static", "-no-pie", "-rdynamic", "-static-pie", "-pie"}
_REFUSED = {
    "-shared": "an enclave image is one static program; it cannot be a shared object",
    "-m32": "an enclave image is x86-64",
    "-dynamic": "an enclave image is static",
}
# What stands for the OpenMP runtime elsewhere; ours comes with -fopenmp.
_OPENMP_LIBRARIES = {"-lomp", "-lgomp", "-liomp5"}
_WITH_VALUE = {
    "-o", "-I", "-D", "-U", "-L", "-l", "-x", "-include", "-isystem", "-iquote", "-idirafter",
    "-MF", "-MT", "-MQ", "-Xlinker", "-Xclang", "-Xpreprocessor", "-T", "-u", "-e", "-z", "-target",
}  # fmt: skip


TRACKERS = ("kernel", "compiler")


class UsageError(Exception):
    """The command line asks for something that is not an enclave image."""


@dataclass(frozen=True)
class Plan:
    """What a command line means.

    Attributes:
        arguments: for the compiler.
        links: whether an image is made.
        openmp: with OpenMP.
        marks: for the compiler tracker.
        compiles: whether objects are made (`-c`, or sources that are linked at once).
        inputs: the words of `arguments` that name files.
    """

    arguments: tuple[str, ...]
    links: bool
    openmp: bool = False
    marks: bool = False
    compiles: bool = True
    inputs: tuple[str, ...] = ()

    @property
    def to_stdout(self) -> bool:
        """Whether assembly or an object is asked for on standard output."""
        named = ("-o", "-") in zip(self.arguments, self.arguments[1:], strict=False)
        return named and not self.links and not {"-E", "-M", "-MM"} & set(self.arguments)


def plan(arguments: Sequence[str]) -> Plan:
    """Read a compiler command line.

    Raises:
        UsageError: it asks for what cannot be an enclave image.
    """
    kept: list[str] = []
    links = True
    openmp = marks = False
    compiles = True
    inputs = 0
    files: list[str] = []
    words = iter(arguments)
    for word in map(translated, words):
        if word.startswith("--tracker"):
            marks = _tracker(word, words) == "compiler"
            continue
        if word in _REFUSED:
            raise UsageError(f"{word}: {_REFUSED[word]}")
        if word == "-target" or word.startswith("--target"):
            raise UsageError(f"{word}: the target of an enclave image is fixed (x86_64-linux-musl)")
        if word in _WITH_VALUE:
            kept.append(word)
            value = next(words, None)
            if value is None:
                raise UsageError(f"{word}: a value is missing")
            kept.append(value)
            inputs += word == "-l"
            continue
        if word in _NO_LINK or word in _ASKS:
            links = False
            compiles = compiles and word == "-c"
        if word in _OPENMP_LIBRARIES:
            continue
        if word == "-fopenmp" or word.startswith("-fopenmp="):
            openmp = True
            word = "-fopenmp"
        elif word == "-fno-openmp":
            openmp = False
        if word in _DROPPED:
            continue
        if not word.startswith("-") or word == "-":
            inputs += 1
            files.append(word)
        kept.append(word)
    return Plan(tuple(kept), links and inputs > 0, openmp, marks, compiles, tuple(files))


def _tracker(word: str, words: Iterator[str]) -> str:
    name = word.partition("=")[2] if "=" in word else next(words, "")
    if name not in TRACKERS:
        raise UsageError(f"--tracker={name}: a tracker is one of {', '.join(TRACKERS)}")
    return name


def compiler_command(driver: str) -> list[str]:
    """The compiler below, as a command.

    Raises:
        UsageError: the toolchain extra is not installed.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise UsageError("no compiler here: pip install 'optmigd[toolchain]'")
    return [sys.executable, "-m", "ziglang", driver, *TARGET]


def run(driver: str, arguments: Sequence[str]) -> int:
    """Compile or link as the command line says; returns the compiler's exit status."""
    try:
        given = expanded(arguments)
        if (answer := answer_to(given)) is not None:
            print(answer)
            return 0
        wanted = plan(given)
        compiler = compiler_command(driver)
    except (UsageError, RecursionError) as error:
        print(f"optmig-cc: {error}", file=sys.stderr)
        return 2
    version = importlib.metadata.version("ziglang")
    if wanted.marks and wanted.compiles and wanted.inputs:
        return _run_marked(driver, wanted, version)
    command = [*compiler, *PLAIN_COMPILER, *wanted.arguments]
    if "-S" in wanted.arguments:
        command.append("-Wno-unused-command-line-argument")  # zig adds a -c, and warns of it
    if wanted.links and "-x" in wanted.arguments:
        command += ["-x", "none"]  # what follows are objects
    try:
        if wanted.openmp:
            openmp = openmp_objects([*compiler_command("cc"), *PLAIN_COMPILER], version)
            command += ["-isystem", str(openmp.include)]
            if wanted.links:
                command += map(str, openmp.objects)
        if wanted.links:
            command += [*map(str, runtime_objects(compiler_command("cc"), version)), *LINK]
    except subprocess.CalledProcessError as error:
        print("optmig-cc: the runtime does not compile with this compiler", file=sys.stderr)
        return error.returncode
    if wanted.to_stdout:
        return _to_stdout(command)
    return subprocess.run(command, check=False).returncode


def _run_marked(driver: str, wanted: Plan, version: str) -> int:
    build = MarkedBuild(
        compiler=[*compiler_command(driver), *PLAIN_COMPILER],
        c_compiler=[*compiler_command("cc"), *PLAIN_COMPILER],
        runtime_compiler=compiler_command("cc"),
        version=version,
        cxx=driver == "c++",
        openmp=wanted.openmp,
    )
    try:
        if wanted.links:
            return build.link(wanted.arguments, wanted.inputs, LINK)
        return build.compile(wanted.arguments, wanted.inputs)
    except subprocess.CalledProcessError as error:
        print("optmig-cc: a marked library does not compile with this compiler", file=sys.stderr)
        return error.returncode


def _to_stdout(command: list[str]) -> int:
    """Run a command whose `-o -` is standard output; the compiler below makes a file `-`."""
    with tempfile.TemporaryDirectory(prefix="optmig-cc-") as folder:
        path = Path(folder) / "output"
        at = command.index("-o")
        status = subprocess.run(
            [*command[: at + 1], str(path), *command[at + 2 :]], check=False
        ).returncode
        if status == 0:
            with path.open("rb") as output:
                shutil.copyfileobj(output, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return status


def main() -> None:
    """Entry point of ``optmig-cc``."""
    sys.exit(run("cc", sys.argv[1:]))


def main_cxx() -> None:
    """Entry point of ``optmig-c++``."""
    sys.exit(run("c++", sys.argv[1:]))


def _binary_tool(name: str) -> None:
    if importlib.util.find_spec("ziglang") is None:
        print("optmig-cc: no tools here: pip install 'optmigd[toolchain]'", file=sys.stderr)
        sys.exit(2)
    command = [sys.executable, "-m", "ziglang", name, *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)


def main_ar() -> None:
    """Entry point of ``optmig-ar``: for machines without binutils, and for archives of bitcode."""
    _binary_tool("ar")


def main_ranlib() -> None:
    """Entry point of ``optmig-ranlib``."""
    _binary_tool("ranlib")


if __name__ == "__main__":
    main() if os.path.basename(sys.argv[0]) != "optmig-c++" else main_cxx()
