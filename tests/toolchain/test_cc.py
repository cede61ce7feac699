"""`optmig-cc` behaves as a compiler driver: options, several sources, ordinary Makefiles."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optmigd.enclave_shim.image import load
from optmigd.enclave_shim.toolchain.cc import UsageError, plan

CC = [sys.executable, "-m", "optmigd.enclave_shim.toolchain.cc"]

LIBRARY = "int twice(int x) { return FACTOR * x; }\n"
HEADER = "int twice(int x);\n"
MAIN = """#include <math.h>
#include <stdio.h>
#include "twice.h"
int main(void) { printf("%d %.1f\\n", twice(21), sqrt(16.0)); return 0; }
"""
MAKEFILE = """CFLAGS = -O2 -Iinclude -DFACTOR=2
LDLIBS = -lm
program: main.o libtwice.a
\t$(CC) $(LDFLAGS) -o $@ main.o libtwice.a $(LDLIBS)
libtwice.a: twice.o
\t$(AR) rcs $@ $^
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "twice.h").write_text(HEADER)
    (tmp_path / "twice.c").write_text(LIBRARY)
    (tmp_path / "main.c").write_text(MAIN)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CC, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def refuses_to_start_alone(image: Path) -> bool:
    done = subprocess.run([image], capture_output=True, text=True, check=False)
    return done.returncode == 127 and "optmig enclave image" in done.stderr


def test_several_sources_in_one_command(sources: Path) -> None:
    done = run(
        *("-O1", "-I", "include", "-DFACTOR=2", "main.c", "twice.c", "-o", "program", "-lm"),
        cwd=sources,
    )
    assert done.returncode == 0, done.stderr
    load(str(sources / "program"))  # raises if it is none
    assert refuses_to_start_alone(sources / "program")


def test_compiling_without_linking_adds_nothing(sources: Path) -> None:
    done = run("-c", "-DFACTOR=2", "twice.c", "-o", "twice.o", cwd=sources)
    assert done.returncode == 0, done.stderr
    content = (sources / "twice.o").read_bytes()
    assert content.startswith(b"\x7fELF")
    assert b"optmig" not in content


def test_an_ordinary_makefile(sources: Path) -> None:
    if shutil.which("make") is None or shutil.which("ar") is None:
        pytest.skip("make and ar are not installed")
    done = subprocess.run(
        ["make", f"CC={' '.join(CC)}", "program"],
        cwd=sources,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert refuses_to_start_alone(sources / "program")


def test_the_same_sources_give_the_same_image(sources: Path) -> None:
    arguments = ("-O2", "-Iinclude", "-DFACTOR=2", "main.c", "twice.c", "-lm", "-o")
    images = []
    for name in ("one", "two"):
        done = run(*arguments, name, cwd=sources)
        assert done.returncode == 0, done.stderr
        images.append((sources / name).read_bytes())
    assert images[0] == images[1]


def test_the_compilers_own_errors_and_status_come_through(sources: Path) -> None:
    (sources / "broken.c").write_text("int main(void) { return nothing; }\n")
    done = run("broken.c", "-o", "broken", cwd=sources)
    assert done.returncode == 1
    assert "nothing" in done.stderr
    assert not (sources / "broken").exists()


@pytest.mark.parametrize("option", ["-shared", "-m32", "--target=aarch64-linux-musl"])
def test_what_cannot_be_an_image_is_refused(option: str, sources: Path) -> None:
    done = run(option, "twice.c", cwd=sources)
    assert done.returncode == 2
    assert option in done.stderr


@pytest.mark.parametrize(
    ("words", "links"),
    [
        (["a.c"], True),
        (["a.c", "-o", "a"], True),
        (["-c", "a.c"], False),
        (["-E", "a.c"], False),
        (["--version"], False),
        (["-I", "-c", "a.c"], True),
        (["a.o", "-lm", "-Wl,--gc-sections"], True),
        (["-Wall"], False),
    ],
)
def test_when_it_links(words: list[str], links: bool) -> None:
    assert plan(words).links is links


def test_static_and_pie_options_are_left_out() -> None:
    assert plan(["-static", "-pie", "-no-pie", "a.c"]).arguments == ("a.c",)


def test_a_missing_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="value is missing"):
        plan(["a.c", "-o"])
