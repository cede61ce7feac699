"""Removes a defence from a copy of the tree and looks whether its test notices.

The copy has everything that git knows, symbolic links as links, so `optmigd.protocol` and its
siblings are the copy's own. Tests run there in a process of their own, with the copy first on the
path; the agents that they start inherit that.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.defences import Defence

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300
_SUMMARY = re.compile(r"(\d+) (passed|failed|error|errors)\b")
_TESTS_FAILED = 1


@dataclass(frozen=True)
class Ran:
    """What a run of tests came to; `counts` by `passed`, `failed`, `errors`."""

    status: int
    counts: dict[str, int]
    output: str

    @property
    def all_passed(self) -> bool:
        """Whether tests ran, and none failed."""
        return self.status == 0 and self.counts.get("passed", 0) > 0

    @property
    def noticed(self) -> bool:
        """Whether a test ran and failed: not that it could not be collected or set up."""
        return (
            self.status == _TESTS_FAILED
            and self.counts.get("failed", 0) > 0
            and not self.counts.get("errors", 0)
        )


def copy_tree(to: Path) -> None:
    """Copy the tree as it is on disk, without what git ignores."""
    for name in _names():
        source, target = ROOT / name, to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.exists():
            shutil.copy2(source, target)


def _names() -> Iterable[str]:
    if not (ROOT / ".git").exists():  # an unpacked archive
        skipped = {"__pycache__", ".venv", "build", "dist", "bench-results"}
        for path in ROOT.rglob("*"):
            parts = path.relative_to(ROOT).parts
            if not skipped & set(parts) and (path.is_symlink() or path.is_file()):
                yield str(path.relative_to(ROOT))
        return
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    yield from filter(None, listed.stdout.decode().split("\0"))


def remove(defence: Defence, tree: Path) -> None:
    """Take a defence away.

    Raises:
        ValueError: its text does not stand exactly once in its file.
    """
    path = tree / defence.file
    text = path.read_text("utf-8")
    if text.count(defence.search) != 1:
        raise ValueError(
            f"{defence.name}: expected its text once in {defence.file}, found it "
            f"{text.count(defence.search)} times"
        )
    path.write_text(text.replace(defence.search, defence.replace), "utf-8")


def restore(defence: Defence, tree: Path) -> None:
    """Put the file back as it was."""
    shutil.copy2(ROOT / defence.file, tree / defence.file)


def run_tests(tests: Iterable[str], tree: Path) -> Ran:
    """Run tests in the tree, in a process of their own; they stop at the first failure."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    counts: dict[str, int] = {}
    for number, word in _SUMMARY.findall(done.stdout.splitlines()[-1] if done.stdout else ""):
        counts["errors" if word == "error" else word] = int(number)
    return Ran(done.returncode, counts, done.stdout + done.stderr)


def imports_from(tree: Path) -> bool:
    """Whether a process that is started as the tests are imports the copy."""
    code = "import optmigd.protocol.wire as m; print(m.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip()).is_relative_to(tree)
