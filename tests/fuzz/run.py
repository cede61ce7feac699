"""Run fuzz targets: `python -m tests.fuzz.run TARGET|all [seconds] [options of libFuzzer]`.

Every target has a corpus in `corpus/TARGET`; what a run finds beyond it is kept in `found/`, which
is not part of the repository (FUZZ_FOUND names another folder). An input that breaks a target is
left in `found/TARGET-crash-…`.
With `keep` instead of seconds nothing is run, but the corpus is made anew: of all inputs, smallest
first, those that take a turn in our code that none before them took.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

with atheris.instrument_imports(include=["optmigd"], enable_loader_override=False):
    from tests.fuzz import binaries, channels, messages, streams, texts  # noqa: F401
    from tests.fuzz.targets import TARGETS, Target

Turn = tuple[str, int, int]
Trace = Callable[[FrameType, str, object], Any]

HERE = Path(__file__).parent
OURS = HERE.parents[1]
CORPUS = HERE / "corpus"
FOUND = Path(os.environ.get("FUZZ_FOUND", HERE / "found"))
RSS_LIMIT_MB = 1024
MAX_INPUT_BYTES = 4096


def main(arguments: list[str]) -> int:
    """Run one target or all, each in a process of its own; 0 if nothing was found."""
    which, how, *options = [*arguments, *(["all", "60"][len(arguments) :])]
    chosen = TARGETS if which == "all" else {which: TARGETS[which]}
    failed = []
    for name, target in chosen.items():
        print(f"== {name}", file=sys.stderr, flush=True)
        if _in_child(name, target, how, options):
            failed.append(name)
    if failed:
        print(f"targets that failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _in_child(name: str, target: Target, how: str, options: list[str]) -> int:
    """Fuzz in a forked child, because libFuzzer ends its process; return its exit status."""
    corpus, found = CORPUS / name, FOUND / name
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (found / f"seed-{number}").write_bytes(seed)
    if how == "keep":
        return _keep(target, corpus, found)
    words = [
        "fuzz",
        str(found),
        str(corpus),
        f"-max_total_time={how}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={FOUND}/{name}-",
        *options,
    ]
    child = os.fork()
    if child == 0:
        atheris.Setup(words, target.attack)
        atheris.Fuzz()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _keep(target: Target, corpus: Path, found: Path) -> int:
    """Replace the corpus by the inputs that are worth having."""
    inputs = {path.read_bytes() for folder in (corpus, found) for path in folder.iterdir()}
    seen: set[Turn] = set()
    shutil.rmtree(corpus)
    corpus.mkdir()
    for content in sorted(inputs, key=lambda content: (len(content), content)):
        turns = _turns(target, content)
        if not turns <= seen:
            seen |= turns
            name = hashlib.sha256(content).hexdigest()[:16]
            (corpus / name).write_bytes(content)
    return 0


def _turns(target: Target, content: bytes) -> "set[Turn]":
    """From which line to which the input leads in our code."""
    turns: set[Turn] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Trace | None:
        file = frame.f_code.co_filename
        if not file.startswith(str(OURS)) or file.startswith(str(HERE)):
            return None
        last = frame.f_lineno

        def line(frame: FrameType, event: str, argument: object) -> Trace:
            nonlocal last
            turns.add((file, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        target.attack(content)
    finally:
        sys.settrace(None)
    return turns


if __name__ == "__main__":
    begun_s = time.monotonic()
    status = main(sys.argv[1:])
    print(f"all in {time.monotonic() - begun_s:.0f} s", file=sys.stderr)
    sys.exit(status)
