"""The C and C++ libraries of a program that marks its writes.

A program's stores are marked by the pass, and so must be those that libc makes for it. The
compiler ships the sources of all that it links: musl, its own parts of libc and the compiler's
runtime (in Zig), libc++, libc++abi and libunwind. They are compiled once into the user's cache,
every file through the pass, with the flags that the compiler itself uses for them. What musl has
in assembly is kept; the few functions of it that write through a pointer are known to the pass
(`marking.writes`), and `memcpy`, `memmove` and `memset` are our own (`marks/strings.c`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from optmigd.enclave_shim.toolchain.marking.instrument import instrument
from optmigd.enclave_shim.toolchain.runtime_objects import cache_root, pass_digest

TARGET = "x86_64-unknown-linux5.10.0-musl"
_COMMON = (
    *(
        "--no-default-config",
        "-target",
        TARGET,
        "-fno-PIC",
        "-fno-PIE",
        "-fno-lto",
        "-g0",
        "-nostdinc",
    ),
    *("-DNDEBUG", "-mred-zone", "-fno-omit-frame-pointer", "-fno-stack-protector", "-w"),
    *(
        "-ffunction-sections",
        "-fdata-sections",
        "-fasynchronous-unwind-tables",
        "-Wa,--noexecstack",
    ),
    *("-Xclang", "-target-cpu", "-Xclang", "x86-64", "-Qunused-arguments"),
)
_SYSTEM = ("include", "libc/include/x86_64-linux-musl", "libc/include/generic-musl",
           "libc/include/x86-linux-any", "libc/include/any-linux-any")  # fmt: skip
_MUSL_INCLUDES = ("arch/x86_64", "arch/generic", "src/include", "src/internal", "include")
_MUSL = (
    *("-fhosted", "-fno-builtin", "-std=c99", "-ffreestanding", "-fexcess-precision=standard"),
    *("-frounding-math", "-ffp-contract=off", "-fno-strict-aliasing", "-D_XOPEN_SOURCE=700"),
)
_MUSL_FAST = ("internal", "malloc", "string")
_LIBCXX = (
    *("-fhosted", "-fbuiltin", "-O2", "-nostdinc++", "-std=c++23", "-fvisibility=hidden"),
    *("-fvisibility-inlines-hidden", "-faligned-allocation", "-D_LIBCPP_ABI_VERSION=1"),
    *("-D_LIBCPP_ABI_NAMESPACE=__1", "-D_LIBCPP_HAS_THREADS=1", "-D_LIBCPP_HAS_MONOTONIC_CLOCK"),
    *(
        "-D_LIBCPP_HAS_TERMINAL",
        "-D_LIBCPP_HAS_MUSL_LIBC=1",
        "-D_LIBCXXABI_DISABLE_VISIBILITY_ANNOTATIONS",
    ),
    *(
        "-D_LIBCPP_DISABLE_VISIBILITY_ANNOTATIONS",
        "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=0",
    ),
    *("-D_LIBCPP_HAS_FILESYSTEM=1", "-D_LIBCPP_HAS_RANDOM_DEVICE", "-D_LIBCPP_HAS_LOCALIZATION"),
    *("-D_LIBCPP_HAS_UNICODE", "-D_LIBCPP_HAS_WIDE_CHARACTERS", "-D_LIBCPP_HAS_NO_STD_MODULES"),
    *("-D_LIBCPP_HAS_TIME_ZONE_DATABASE", "-D_LIBCPP_PSTL_BACKEND_SERIAL"),
    "-D_LIBCPP_HARDENING_MODE=_LIBCPP_HARDENING_MODE_NONE",
    "-D_LIBCPP_ASSERTION_SEMANTIC_DEFAULT=_LIBCPP_ASSERTION_SEMANTIC_IGNORE",
    *("-DLIBC_NAMESPACE=__llvm_libc_common_utils", "-D_LIBCPP_BUILDING_LIBRARY"),
    *("-DLIBCXX_BUILDING_LIBCXXABI", "-D_LIBCPP_HAS_NO_PRAGMA_SYSTEM_HEADER"),
    *("-D_LIBCXXABI_BUILDING_LIBRARY", "-fstrict-aliasing"),
)
_UNWIND = (
    *("-fhosted", "-fbuiltin", "-O2", "-D_LIBUNWIND_HIDE_SYMBOLS", "-D_LIBUNWIND_IS_NATIVE_ONLY"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    "-fvisibility-global-new-delete=force-hidden",
)
_UNWIND_KINDS = {
    ".cpp": ("-fno-exceptions", "-fno-rtti", "-nostdinc++"),
    ".c": ("-std=c99", "-fexceptions"),
    ".S": (),
}
# Of libc++'s folders: for other systems, or not in the library.
_LIBCXX_SKIPPED = ("experimental", "support", "pstl", "int128_builtins", "tzdb")
_UNWIND_SKIPPED = ("Unwind_AIXExtras", "Unwind_AppleExtras", "AIX")
_ZIG = ("c.zig", "compiler_rt.zig")


@dataclass(frozen=True)
class Libraries:
    """What a marked program is linked with instead of the compiler's own: in order of linking."""

    start: Path
    archives: tuple[Path, ...]


@dataclass(frozen=True)
class _Job:
    """One source: the command that makes IR of it (or its object, of assembly)."""

    compiler: str
    source: str
    flags: tuple[str, ...]
    output: str


def c_libraries(version: str) -> Libraries:
    """libc and the compiler's runtime; built now if they are not in the cache (a minute or two).

    Args:
        version: of the compiler; part of the cache's name.

    Raises:
        subprocess.CalledProcessError: a source does not compile; see stderr.
    """
    folder = _built("libc", version, _build_libc)
    return Libraries(folder / "crt1.o", (folder / "libc.a",))


def cxx_libraries(version: str) -> Libraries:
    """libc++, libc++abi and libunwind, and what `c_libraries` says."""
    folder = _built("libcxx", version, _build_libcxx)
    c = c_libraries(version)
    return Libraries(c.start, (folder / "libcxx.a", *c.archives))


def _zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("ziglang is not installed")
    return Path(spec.origin).parent


def _built(name: str, version: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder of a library, named by all that went into it."""
    digest = hashlib.sha256(version.encode() + pass_digest())
    digest.update(Path(__file__).read_bytes())
    folder = cache_root() / f"marked-{name}-{digest.hexdigest()[:24]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="marked-", dir=folder.parent))
    try:
        build(work)
        shutil.rmtree(work / "objects", ignore_errors=True)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _build_libc(work: Path) -> None:
    zig = _zig()
    lib = zig / "lib"
    musl = lib / "libc" / "musl"
    objects = work / "objects"
    objects.mkdir()
    includes = [f"-I{musl / one}" for one in _MUSL_INCLUDES]
    includes += [f"-isystem{lib / one}" for one in _SYSTEM[:3]]
    jobs = []
    for source in _musl_sources(musl):
        level = "-O3" if source.relative_to(musl / "src").parts[0] in _MUSL_FAST else "-Os"
        flags = (*_COMMON, *_MUSL, *includes, level)
        jobs.append(_Job(str(zig / "zig"), str(source), flags, _object(objects, musl, source)))
    start = (*_COMMON, *_MUSL, *includes, "-Os", "-DCRT")
    crt1 = str(musl / "crt" / "crt1.c")
    jobs.append(_Job(str(zig / "zig"), crt1, start, str(work / "crt1.o")))
    jobs += [_zig_job(zig, lib / name, objects) for name in _ZIG]
    _run(jobs)
    for entry in resources.files("optmigd.enclave_shim.marks").iterdir():
        if entry.name.endswith((".c", ".h")):
            (objects / entry.name).write_bytes(entry.read_bytes())
    plain = [*_COMMON, *(f"-isystem{lib / one}" for one in _SYSTEM), "-O2", "-ffreestanding"]
    for source in sorted(objects.glob("*.c")):
        _clang(zig / "zig", [*plain, "-fno-builtin", "-c", str(source), "-o", f"{source}.o"])
    _archive(zig / "zig", work / "libc.a", objects)


def _build_libcxx(work: Path) -> None:
    zig = _zig()
    lib = zig / "lib"
    objects = work / "objects"
    objects.mkdir()
    system = [f"-isystem{lib / one}" for one in _SYSTEM]
    cxx, abi, unwind = lib / "libcxx", lib / "libcxxabi", lib / "libunwind"
    includes = [f"-I{one}" for one in (cxx / "include", abi / "include", cxx / "src", cxx / "libc")]
    includes += [f"-I{abi / 'src'}", f"-I{unwind / 'include'}"]
    jobs = []
    for root in (cxx, abi):
        for source in sorted((root / "src").rglob("*.cpp")):
            if not any(part in _LIBCXX_SKIPPED for part in source.relative_to(root).parts):
                if source.stem in ("cxa_noexception", "tzdb", "time_zone"):
                    continue
                flags = (*_COMMON, *_LIBCXX, *includes, *system)
                jobs.append(
                    _Job(str(zig / "zig"), str(source), flags, _object(objects, lib, source))
                )
    for source in sorted((unwind / "src").iterdir()):
        if source.suffix in _UNWIND_KINDS and source.stem not in _UNWIND_SKIPPED:
            kind = _UNWIND_KINDS[source.suffix]
            flags = (*_COMMON, *_UNWIND, *kind, f"-I{unwind / 'include'}", *system)
            jobs.append(_Job(str(zig / "zig"), str(source), flags, _object(objects, lib, source)))
    _run(jobs)
    _archive(zig / "zig", work / "libcxx.a", objects)


def _object(objects: Path, root: Path, source: Path) -> str:
    return str(objects / (str(source.relative_to(root)).replace(os.sep, "_") + ".o"))


def _musl_sources(musl: Path) -> list[Path]:
    """musl's sources for x86-64: a file of the architecture's folder replaces the general one."""
    general: dict[tuple[str, str], Path] = {}
    own: dict[tuple[str, str], Path] = {}
    for source in sorted((musl / "src").rglob("*")):
        parts = source.relative_to(musl / "src").parts
        if source.suffix not in (".c", ".s", ".S"):
            continue
        if len(parts) == 3 and parts[1] == "x86_64":
            own[parts[0], source.stem] = source
        elif len(parts) == 2 or parts[1] in ("mallocng", "oldmalloc"):
            general["/".join(parts[:-1]), source.stem] = source
    return [*(source for key, source in general.items() if key not in own), *own.values()]


def _zig_job(zig: Path, source: Path, objects: Path) -> _Job:
    """A library in Zig: its IR is made here, because only the Zig compiler can."""
    ir = objects / f"{source.stem}.ll"
    command = [str(zig / "zig"), "build-obj", str(source), "-target", "x86_64-linux-musl", "-lc"]
    command += ["-O", "ReleaseFast", "-fstrip", "-fno-emit-bin", f"-femit-llvm-ir={ir}"]
    command += ["-mcpu=x86_64"]
    subprocess.run(command, check=True, cwd=objects)
    return _Job(str(zig / "zig"), str(ir), (*_COMMON, "-O2"), f"{ir}.o")


def _run(jobs: Sequence[_Job]) -> None:
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(_carry_out, jobs, chunksize=4):
            pass


def _carry_out(job: _Job) -> None:
    source = Path(job.source)
    if source.suffix in (".s", ".S"):
        keep = [flag for flag in job.flags if flag not in ("-std=c99", "-ffreestanding")]
        _clang(Path(job.compiler), [*keep, "-c", job.source, "-o", job.output])
        return
    if source.suffix == ".ll":
        text = source.read_text()
    else:
        made = subprocess.run(
            [job.compiler, "clang", *job.flags, "-S", "-emit-llvm", job.source, "-o", "-"],
            check=True,
            stdout=subprocess.PIPE,
        )
        text = made.stdout.decode()
    assemble_ir(job.compiler, text, source.name, job.flags, job.output)


def assemble_ir(compiler: str, text: str, name: str, flags: Iterable[str], output: str) -> None:
    """Put the marks into a library's IR and compile it on."""
    marked = instrument(text, name, library=True)
    dropped = ("-D", "-I", "-isystem", "-std=", "-nostdinc++")
    kept = [flag for flag in flags if not flag.startswith(dropped)]
    command = [compiler, "clang", *kept, "-Xclang", "-disable-llvm-passes", "-x", "ir", "-c", "-"]
    subprocess.run([*command, "-o", output], input=marked.text.encode(), check=True)


def _clang(zig: Path, arguments: list[str]) -> None:
    subprocess.run([str(zig), "clang", *arguments], check=True)


def _archive(zig: Path, archive: Path, objects: Path) -> None:
    members = sorted(str(one) for one in objects.glob("*.o"))
    listing = objects / "members"
    listing.write_text("\n".join(members))
    subprocess.run([str(zig), "ar", "rcsD", str(archive), f"@{listing}"], check=True)
