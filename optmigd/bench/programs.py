"""Build a workload twice with one compiler: as an enclave image, and as an ordinary program."""

import importlib.metadata
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from optmigd.bench.suite import SUITE
from optmigd.enclave_shim.toolchain.cc import PLAIN_COMPILER, compiler_command, run
from optmigd.enclave_shim.toolchain.runtime_objects import openmp_objects

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


def build(source: Path, folder: Path, *flags: str, marks: bool = False) -> Program:
    """Compile a C or C++ source into `folder`; in C++ if its name ends in `.cc`.

    Args:
        source, folder, flags: what to compile, where to, and how.
        marks: the image is built for the compiler tracker.

    Raises:
        subprocess.CalledProcessError: it does not compile; the compiler's words are on stderr.
    """
    kind = "marked" if marks else "image"
    program = Program(folder / f"{source.stem}.{kind}", folder / f"{source.stem}.native")
    driver = "c++" if source.suffix == ".cc" else "cc"
    tail = [*_FLAGS, *flags, str(source), "-lm", "-o"]
    command = ["optmig-" + driver, *tail, str(program.image)]
    if marks:
        command.insert(1, "--tracker=compiler")
    status = run(driver, command[1:])
    if status:
        raise subprocess.CalledProcessError(status, command)
    native = [*compiler_command(driver), *PLAIN_COMPILER, *tail, str(program.native)]
    if "-fopenmp" in flags:
        version = importlib.metadata.version("ziglang")
        openmp = openmp_objects([*compiler_command("cc"), *PLAIN_COMPILER], version)
        native += ["-isystem", str(openmp.include), *map(str, openmp.objects)]
    subprocess.run(native, check=True)
    return program


def build_workload(name: str, folder: Path, *, marks: bool = False) -> Program:
    """Compile one of the project's own workloads: by its name in the suite, or by its source's.

    `marks` is as for `build`.
    """
    known = {item.name: item for item in SUITE}
    source: str = f"{name}.c"
    flags: tuple[str, ...] = ()
    if name in known:
        source, flags = known[name].source, known[name].flags
    with resources.as_file(resources.files("optmigd.bench.workloads") / source) as path:
        return build(path, folder, *flags, marks=marks)
