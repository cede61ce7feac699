"""What `optmig-cc --tracker=compiler` does with a command line: it compiles, and it links."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optmigd.enclave_shim.toolchain.marked_compile import (
    ASSEMBLY,
    SOURCES,
    compile_source,
    link_words,
    notes_object,
    own_libraries,
    unmarked_objects,
)
from optmigd.enclave_shim.toolchain.marked_libraries import c_libraries, cxx_libraries
from optmigd.enclave_shim.toolchain.runtime_objects import openmp_objects, runtime_objects

_WITH_VALUE = {
    *("-o", "-I", "-D", "-U", "-L", "-l", "-x", "-include", "-isystem", "-iquote", "-idirafter"),
    *("-MF", "-MT", "-MQ", "-Xlinker", "-Xclang", "-Xpreprocessor", "-T", "-u", "-e", "-z"),
}
_FOR_LINKS = ("-l", "-L", "-T", "-u", "-e", "-z", "-Xlinker")


@dataclass(frozen=True)
class MarkedBuild:
    """One call of the compiler driver.

    Attributes:
        compiler: the command for the sources' language.
        c_compiler: the same for C.
        runtime_compiler: the command for the runtime.
        version: of the compiler.
        cxx: link the C++ library.
        openmp: with OpenMP.
    """

    compiler: Sequence[str]
    c_compiler: Sequence[str]
    runtime_compiler: Sequence[str]
    version: str
    cxx: bool
    openmp: bool

    def compile(self, arguments: Sequence[str], inputs: Sequence[str]) -> int:
        """Make objects of sources (`-c`); returns the compiler's exit status."""
        options, output = _split(arguments, inputs)
        options = self._with_openmp(options)
        others = [word for word in inputs if Path(word).suffix not in SOURCES and word != "-"]
        for word in inputs:
            if word not in others:
                made = Path(output or Path(word).with_suffix(".o").name)
                if status := compile_source(self.compiler, word, options, made):
                    return status
        if not others:
            return 0
        target = ["-o", output] if output else []
        command = [*self.compiler, *options, "-c", *others, *target]
        return subprocess.run(command, check=False).returncode

    def link(
        self, arguments: Sequence[str], inputs: Sequence[str], link_options: Sequence[str]
    ) -> int:
        """Make an image; returns the compiler's exit status.

        Raises:
            subprocess.CalledProcessError: a library does not compile.
        """
        options = self._with_openmp(_split(arguments, inputs)[0])
        objects: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="optmig-cc-") as name:
            for number, word in enumerate(inputs):
                if Path(word).suffix in SOURCES or word == "-":
                    made = Path(name) / f"{number}.o"
                    if status := compile_source(self.compiler, word, options, made):
                        return status
                    objects[word] = str(made)
            note = Path(name) / "notes.o"
            notes_object(self.runtime_compiler, _notes(arguments, inputs), note)
            words = own_libraries(objects.get(word, word) for word in arguments)
            words += [str(note), *map(str, self._runtime())]
            libraries = (cxx_libraries if self.cxx else c_libraries)(self.version)
            words += link_words(libraries.start, libraries.archives)
            command = [*self.compiler, *words, *link_options]
            return subprocess.run(command, check=False).returncode

    def _with_openmp(self, options: list[str]) -> list[str]:
        if not self.openmp:
            return options
        openmp = openmp_objects(self.c_compiler, self.version, marks=True)
        return [*options, "-isystem", str(openmp.include)]

    def _runtime(self) -> list[Path]:
        objects = list(runtime_objects(self.runtime_compiler, self.version))
        if self.openmp:
            objects += openmp_objects(self.c_compiler, self.version, marks=True).objects
        return objects


def _notes(arguments: Sequence[str], inputs: Sequence[str]) -> list[str]:
    notes = [f"{word}: an assembly source" for word in inputs if Path(word).suffix in ASSEMBLY]
    return notes + [f"{one}: an object without marks" for one in unmarked_objects(arguments)]


def _split(arguments: Sequence[str], inputs: Sequence[str]) -> tuple[list[str], str]:
    """The options of a command line without inputs, `-c` and `-o`, and the output ("" for none)."""
    options: list[str] = []
    output = ""
    words = iter(arguments)
    for word in words:
        if word == "-o":
            output = next(words)
        elif word in _WITH_VALUE:
            value = next(words)
            if word not in _FOR_LINKS:
                options += [word, value]
        elif word not in inputs and word != "-c" and not word.startswith(("-l", "-L", "-Wl,")):
            options.append(word)
    return options, output
