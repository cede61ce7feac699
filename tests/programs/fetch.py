"""Sources of programs that others wrote, fetched by package managers and never committed.

Versions and digests are pinned; what was fetched stays unpacked in the user's cache. Python's own
`pip download` runs a package's build backend even for a source archive, only to learn its name: a
backend of ten lines says it, so that nothing of the package is run or built.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120

_BACKEND = """\
import os

NAME, VERSION = os.environ["FETCHED"].split("==")


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = f"{NAME}-{VERSION}.dist-info"
    os.mkdir(os.path.join(folder, info))
    with open(os.path.join(folder, info, "METADATA"), "w") as metadata:
        metadata.write(f"Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n")
    return info


class __legacy__:  # for packages without a pyproject.toml
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""
_BACKENDS = ("setuptools/build_meta", "scikit_build_core/build")


class Unreachable(Exception):
    """The registry does not answer, or has not that version."""


@dataclass(frozen=True)
class Source:
    """One archive: registry (`pypi` or `npm`), name, version, SHA-256 of the archive."""

    registry: str
    name: str
    version: str
    sha256: str


SQLITE = Source(
    *("npm", "better-sqlite3", "12.11.1"),
    "ebf0ed75a7a59dbcb3b24bbd014ef49d9f15bc328e4adcbf516f2a8fadfa2835",
)
ZSTD = Source(
    *("pypi", "zstandard", "0.25.0"),
    "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b",
)
LUA = Source(
    *("pypi", "lupa", "2.8"),
    "d8022641b9ec8ecf2c5ecbe9f47e5a70e0b87c4b5ae921b92cb02a638e0acd08",
)
LIGHTGBM = Source(
    *("pypi", "lightgbm", "4.7.0"),
    "f8e20f682c9aabd000bcf4a7ed8aa6f473c1adfecccae34ec24e823d156f4af0",
)


def cache() -> Path:
    """Where fetched sources and what was built of them stay."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "optmigd" / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(source: Source) -> Path:
    """The folder of an archive's content, fetched now if it is not in the cache.

    Raises:
        Unreachable: the package manager could not get it.
        RuntimeError: the archive is not the one that is pinned.
    """
    folder = cache() / f"{source.name}-{source.version}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache()) as name:
            work = Path(name)
            archive = _from_npm(source, work) if source.registry == "npm" else _pip(source, work)
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            if digest != source.sha256:
                raise RuntimeError(f"{archive.name}: expected {source.sha256}, found {digest}")
            with tarfile.open(archive) as content:
                content.extractall(work / "content", filter="data")
            (unpacked,) = (work / "content").iterdir()
            unpacked.rename(folder)
    return folder


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"{command[0]} does not come to an end") from error
    if done.returncode:
        raise Unreachable(f"{' '.join(command[:4])} …: {done.stderr[-500:]}")


def _from_npm(source: Source, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable("npm is not installed")
    _run([npm, "pack", "--silent", f"{source.name}@{source.version}"], folder, {})
    return next(folder.glob("*.tgz"))


def _pip(source: Source, folder: Path) -> Path:
    wanted = f"{source.name}=={source.version}"
    stub = folder / "backend"
    for module in _BACKENDS:
        path = stub / f"{module}.py"
        path.parent.mkdir(parents=True)
        (path.parent / "__init__.py").touch()
        path.write_text(_BACKEND)
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", ":all:", "--no-build-isolation", wanted),
        ],
        folder,
        {"PYTHONPATH": str(stub), "FETCHED": wanted},
    )
    return next(folder.glob("*.tar.gz"))


def cmake() -> Path:
    """CMake as PyPI has it: that of the machine is often older than what a project asks for."""
    folder = cache() / "cmake-4.4.5"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache()) as name:
            target = Path(name) / "cmake"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "cmake==4.4.5"]
            _run([*command, "--target", str(target)], Path(name), {})
            target.rename(folder)
    return folder / "cmake" / "data" / "bin" / "cmake"
