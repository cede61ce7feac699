"""What build systems write on a compiler's command line that `zig cc` would take otherwise.

`zig cc` is clang behind another front: it reads a processor's name in its own spelling, knows no
`-o -` for assembly, tells the host's libraries when it is asked for the compiler's own, and knows
one spelling of link-time optimisation. Programs' build systems were written for gcc and clang.
"""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

NESTED_RESPONSES = 16
"""How deep response files may name each other: GNU's tools have no limit and loop for ever."""

_PROCESSOR = ("-march=", "-mtune=", "-mcpu=")


def expanded(arguments: Iterable[str], depth: int = 0) -> list[str]:
    """The arguments with every `@file` replaced by what is in the file.

    A file that does not exist is an ordinary word, as GNU's tools have it.

    Raises:
        RecursionError: response files name each other too deeply.
    """
    if depth > NESTED_RESPONSES:
        raise RecursionError("response files (@file) name each other")
    words: list[str] = []
    for word in arguments:
        path = Path(word[1:]) if word.startswith("@") else None
        if path is not None and path.is_file():
            words += expanded(shlex.split(path.read_text()), depth + 1)
        else:
            words.append(word)
    return words


def translated(word: str) -> str:
    """One option in the spelling of the compiler below.

    Processors: `x86-64-v3` is `x86_64_v3` there (a hyphen would take a feature away). Link-time
    optimisation in several processes (`-flto=auto`, `-flto=4`) is that in one.
    """
    if word.startswith(_PROCESSOR):
        option, _, processor = word.partition("=")
        return f"{option}={processor.replace('-', '_')}"
    mode = word.removeprefix("-flto=")
    if mode != word and (mode in ("auto", "jobserver") or mode.isdigit()):
        return "-flto"
    return word


def answer_to(arguments: Sequence[str]) -> str | None:
    """The answer to a question about the compiler's own files, or None if none is asked.

    There are none of the host's in an image, so a library or program is where the linker below
    finds it by its name: the answer of any compiler that knows no better.
    """
    for word in arguments:
        if word == "-print-multiarch":
            return "x86_64-linux-musl"
        if word == "-print-libgcc-file-name":
            return "libgcc.a"
        option, _, name = word.partition("=")
        if option in ("-print-file-name", "--print-file-name") and name:
            return name
    return None
