"""Every program that `make programs` moves: how it is built, what it is run with, what it answers.

Programs of others are built with nothing but `CC` and `CXX` changed. What a program must answer is
what the same image answers when it runs alone, as an ordinary process and without the runtime.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optmigd import enclave_shim
from optmigd.bench.programs import build_workload
from optmigd.bench.suite import SUITE, Size, Workload
from tests.programs.fetch import LIGHTGBM, LUA, SQLITE, ZSTD, Source, cache, cmake, fetch

SOURCES = Path(__file__).parent / "sources"
FLAGS = ("-O2", "-g0")


@dataclass(frozen=True)
class Case:
    """One program and one way to run it.

    Attributes:
        build: makes the image in a folder, for a tracker.
        arguments: for a run that takes `scale` times as long as the shortest useful one.
        files: put into the enclave's own directory before it starts.
        results: files that it leaves there and that belong to the answer.
    """

    name: str
    build: Callable[[Path, str], Path]
    arguments: Callable[[int], tuple[str, ...]]
    memory_bytes: int
    files: Callable[[], Mapping[str, bytes]] = dict
    results: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def answer(self, output: bytes, folder: Path) -> str:
        """What the run said in the end, and a digest of every file that it made."""
        lines = [line for line in output.decode().splitlines() if line.startswith("answer")]
        for name in self.results:
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            lines.append(f"{name}: {digest}")
        return "\n".join(lines)

    def alone(self, image: Path, scale: int, folder: Path) -> str:
        """The answer of a run that nobody interrupts."""
        folder.mkdir(parents=True, exist_ok=True)
        self.put_files(folder)
        done = subprocess.run(
            [image, *self.arguments(scale)],
            cwd=folder,
            env={**self.env, "OPTMIG_ALONE": "1"},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: status {done.returncode}: {done.stderr[-500:]!r}")
        return self.answer(done.stdout, folder)

    def put_files(self, folder: Path) -> None:
        """What the program finds in its own directory."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


def _driver(name: str, tracker: str) -> list[str]:
    chosen = [] if tracker == "kernel" else [f"--tracker={tracker}"]
    return [str(Path(sys.executable).with_name(name)), *chosen]


def _compiled(source: Source, files: tuple[str, ...], own: str, *flags: str) -> Callable[..., Path]:
    def build(folder: Path, tracker: str) -> Path:
        root = fetch(source)
        image = folder / f"{source.name}-{tracker}.image"
        include = (root / files[0]).parent
        paths = [str(root / name) for name in files]
        if own:
            paths.append(str(SOURCES / own))
        command = [*_driver("optmig-cc", tracker), *FLAGS, *flags, "-I", str(include), *paths]
        subprocess.run([*command, "-lm", "-o", str(image)], check=True)
        return image

    return build


def _compiler_digest(command: list[str]) -> str:
    """Changes with whatever goes into the objects that the compiler makes."""
    digest = hashlib.sha256("\0".join(command).encode())
    for part in ("toolchain", "marks", "openmp"):
        for path in sorted((Path(enclave_shim.__file__).parent / part).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _lightgbm(folder: Path, tracker: str) -> Path:
    """CMake, as its own documentation says. Objects, which take minutes, are kept in the cache for
    this checkout's compiler as it is now; the program is linked anew."""
    root = fetch(LIGHTGBM)
    if (root / "lightgbm" / "basic.py").exists():  # PyPI's folder is where the program goes
        (root / "lightgbm").rename(root / "python-lightgbm")
    (root / "lightgbm").unlink(missing_ok=True)
    cc, cxx = (_driver(name, tracker) for name in ("optmig-cc", "optmig-c++"))
    kind = f"lightgbm-{LIGHTGBM.version}-build-{tracker}"
    build = cache() / f"{kind}-{_compiler_digest(cc)}"
    for other in cache().glob(f"{kind}*"):
        if other != build:
            shutil.rmtree(other)
    environment = os.environ | {"CC": " ".join(cc), "CXX": " ".join(cxx)}
    command = [str(cmake()), "-B", str(build), "-S", str(root), "-DBUILD_STATIC_LIB=ON"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    command = [str(cmake()), "--build", str(build), "--target", "lightgbm", "-j", "2"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Path(shutil.move(root / "lightgbm", folder / "lightgbm.image"))


def _table() -> Mapping[str, bytes]:
    """Samples of two classes, from a hash."""
    rows = []
    for number in range(6000):
        digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=20).digest()
        label = int(digest[0] + digest[1] > digest[2] + digest[3] // 2)
        rows.append(",".join(str(value) for value in (label, *digest)))
    return {"train.csv": "\n".join(rows).encode()}


def _suite(item: Workload) -> Case:
    def build(folder: Path, tracker: str) -> Path:
        return build_workload(item.name, folder, marks=tracker == "compiler").image

    def arguments(scale: int) -> tuple[str, ...]:
        return item.arguments(Size(item.small.mib, item.small.work * scale))

    return Case(item.name, build, arguments, item.memory_bytes(item.small))


OTHERS = (
    Case(
        "sqlite",
        _compiled(SQLITE, ("deps/sqlite3/sqlite3.c",), "sqlite_load.c"),
        lambda scale: ("20000", str(6 * scale)),
        512 << 20,
    ),
    Case(
        "zstd",
        _compiled(ZSTD, ("zstd/zstd.c",), "zstd_stream.c"),
        lambda scale: (str(96 * scale), "6", "3"),
        512 << 20,
    ),
    Case(
        "lua",
        _compiled(LUA, ("third-party/lua54/onelua.c",), ""),
        lambda scale: ("everyday.lua", str(400 * scale)),
        256 << 20,
        lambda: {"everyday.lua": (SOURCES / "everyday.lua").read_bytes()},
    ),
    Case(
        "lightgbm",
        _lightgbm,
        lambda scale: (
            *("task=train", "objective=binary", "data=train.csv", "output_model=model.txt"),
            *(f"num_trees={150 * scale}", "num_leaves=63", "num_threads=4", "deterministic=true"),
            *("force_row_wise=true", "seed=1", "verbosity=1"),
        ),
        512 << 20,
        _table,
        ("model.txt",),
    ),
)
CASES = {case.name: case for case in (*map(_suite, SUITE), *OTHERS)}


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for images and own directories."""
    return tempfile.TemporaryDirectory(prefix="optmigd-programs-")
