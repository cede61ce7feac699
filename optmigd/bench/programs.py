"""Build a workload twice with one compiler: as an enclave image, and as an ordinary program."""

import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from optmigd.enclave_shim.toolchain.cc import PLAIN_COMPILER, compiler_command

_FLAGS = ("-O2", "-Wall", "-Wextra", "-g0")


@dataclass(frozen=True)
class Program:
    """One source, built twice.

    Attributes:
        image: the enclave image.
        native: the same program without the runtime, for its answer and its speed.
    """

    image: Path
    native: Path


def build(source: Path, folder: Path, *flags: str) -> Program:
    """Compile a C source into `folder`.

    Raises:
        subprocess.CalledProcessError: it does not compile; the compiler's words are on stderr.
    """
    program = Program(folder / f"{source.stem}.image", folder / f"{source.stem}.native")
    driver = [sys.executable, "-m", "optmigd.enclave_shim.toolchain.cc"]
    tail = [*_FLAGS, *flags, str(source), "-lm", "-o"]
    subprocess.run([*driver, *tail, str(program.image)], check=True)
    native = [*compiler_command("cc"), *PLAIN_COMPILER]
    subprocess.run([*native, *tail, str(program.native)], check=True)
    return program


def build_workload(name: str, folder: Path) -> Program:
    """Compile one of the project's own workloads."""
    with resources.as_file(resources.files("optmigd.bench.workloads") / f"{name}.c") as source:
        return build(source, folder)
