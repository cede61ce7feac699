"""Compile and link for the compiler tracker: every source through the pass, marked libraries.

What cannot be tracked (assembly, an object that another compiler made) does not stop the build. It
is recorded in the image's section `optmig_marks`, and the shim agent then says why the image
cannot run under this tracker: under the kernel's it still can.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from optmigd.enclave_shim.toolchain.marking.emit import note_lines
from optmigd.enclave_shim.toolchain.marking.instrument import instrument

SECTION = b"optmig_marks"
SOURCES = {".c", ".cc", ".cpp", ".cxx", ".C", ".c++", ".CPP", ".m"}
ASSEMBLY = {".s", ".S", ".sx"}
# Options that matter when IR becomes an object; all others have had their effect.
_CODE = ("-O", "-m", "-f", "-g", "-W", "-w")
_NOT_CODE = ("-flto", "-fopenmp", "-fsyntax", "-fprofile")
# With a file of dependencies as well the compiler writes no IR, so that is asked for separately.
_DEPENDENCIES = {"-MD": "-M", "-MMD": "-MM"}
_OF_DEPENDENCIES = {"-MP", "-MG"}
_OF_DEPENDENCIES_WITH_WORD = {"-MF", "-MT", "-MQ"}
_LIBRARIES = ("c", "m", "pthread", "dl", "rt", "util", "crypt", "xnet", "resolv", "gcc")
_CXX_LIBRARIES = ("stdc++", "c++", "c++abi", "unwind")
_OURS = {f"-l{name}" for name in (*_LIBRARIES, *_CXX_LIBRARIES)}
# zig adds a -c of its own, and warns of it.
_QUIET = ("-Wno-unused-command-line-argument",)
_AR_MAGIC = b"!<arch>\n"
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_EXECUTABLE = 4


def compile_source(
    compiler: Sequence[str],
    source: str,
    options: Sequence[str],
    output: Path,
    *,
    library: bool = False,
) -> int:
    """Compile one source to an object with marks; returns the compiler's exit status.

    Args:
        compiler: the compiler's command.
        source: as named on the command line.
        options: the command line's other words, without `-c`, `-o` and sources.
        output: the object.
        library: as for `instrument`.
    """
    with tempfile.TemporaryDirectory(prefix="optmig-cc-") as name:
        ir = Path(name) / "module.ll"
        language = [] if Path(source).suffix in SOURCES else ["-x", "c"]
        kept = [one for one in options if not one.startswith("-flto")]
        asked, dependencies = split_dependencies(kept, output)
        if dependencies:
            command = [*compiler, *asked, *dependencies, *_QUIET, *language, source]
            told = subprocess.run(command, check=False)
            if told.returncode:
                return told.returncode
        made = subprocess.run(
            [*compiler, *asked, *_QUIET, *language, source, "-S", "-emit-llvm", "-o", str(ir)],
            check=False,
        )
        if made.returncode:
            return made.returncode
        marked = instrument(ir.read_text(), source, library=library)
        ir.write_text(marked.text)
        return compile_ir(compiler, asked, ir, output)


def split_dependencies(options: Sequence[str], output: Path) -> tuple[list[str], list[str]]:
    """The options of a compilation without, and those of a run that only lists, its dependencies.

    Args:
        options: the command line's.
        output: the object that the compilation makes, which names the list and stands in it.

    """
    rest: list[str] = []
    listing: list[str] = []
    how = ""
    words = iter(options)
    for word in words:
        pieces = word.split(",")
        if pieces[0] == "-Wp" and len(pieces) == 3 and pieces[1] in _DEPENDENCIES:
            how = _DEPENDENCIES[pieces[1]]
            listing += ["-MF", pieces[2]]
        elif word in _DEPENDENCIES:
            how = _DEPENDENCIES[word]
        elif word in _OF_DEPENDENCIES:
            listing.append(word)
        elif word in _OF_DEPENDENCIES_WITH_WORD:
            listing += [word, next(words, "")]
        else:
            rest.append(word)
    if not how:
        return rest, []
    if "-MF" not in listing:
        listing += ["-MF", str(output.with_suffix(".d"))]
    if not {"-MT", "-MQ"} & set(listing):
        listing += ["-MT", str(output)]
    return rest, [how, *listing]


def compile_ir(compiler: Sequence[str], options: Sequence[str], ir: Path, output: Path) -> int:
    """Compile IR on to an object, without optimising it again."""
    kept = [one for one in options if one.startswith(_CODE) and not one.startswith(_NOT_CODE)]
    command = [*compiler, *kept, *_QUIET, "-Xclang"]
    command += ["-disable-llvm-passes", "-c", str(ir), "-o", str(output)]
    return subprocess.run(command, check=False).returncode


def notes_object(compiler: Sequence[str], notes: list[str], output: Path) -> None:
    """An object that records why a program cannot be tracked."""
    ir = output.with_suffix(".ll")
    ir.write_text("\n".join(note_lines(notes)) + "\n")
    command = [*compiler, *_QUIET, "-Wno-override-module"]
    subprocess.run([*command, "-c", str(ir), "-o", str(output)], check=True)


def unmarked_objects(words: Sequence[str]) -> Iterator[str]:
    """Which objects on a command line, or in its archives, hold code without marks."""
    for word in words:
        path = Path(word)
        if path.suffix not in (".o", ".a", ".obj", ".lo") or not path.is_file():
            continue
        content = path.read_bytes()
        for member, body in _members(content) if content.startswith(_AR_MAGIC) else [("", content)]:
            if body.startswith(b"\x7fELF") and _has_code(body) and SECTION not in body:
                yield f"{path.name}({member})" if member else path.name


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    at = len(_AR_MAGIC)
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode(errors="replace"), int(content[at + 48 : at + 58])
        yield name.strip().rstrip("/"), content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def _has_code(body: bytes) -> bool:
    offset = struct.unpack_from("<Q", body, 40)[0]
    size, count = struct.unpack_from("<HH", body, 58)
    if size != _SECTION_HEADER.size:
        return True
    for index in range(count):
        _, _, flags, _, _, length, *_ = _SECTION_HEADER.unpack_from(body, offset + index * size)
        if flags & _EXECUTABLE and length:
            return True
    return False


def own_libraries(words: Iterable[str]) -> list[str]:
    """A link's words without the libraries that ours stand for: they would bring the compiler's."""
    dropped = ("-pthread", "-fopenmp", "-lomp")
    kept = (one for one in words if one not in _OURS and one not in dropped)
    return [one for one in kept if not one.startswith("-flto")]


def link_words(start: Path, archives: Sequence[Path]) -> list[str]:
    """What replaces the compiler's own start files and libraries in a link."""
    return [
        "-nostdlib",
        "-nostartfiles",
        str(start),
        "-Wl,--start-group",
        *map(str, archives),
        "-Wl,--end-group",
    ]
