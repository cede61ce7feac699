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


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("-march=x86-64-v3", "-march=x86_64_v3"),
        ("-mtune=skylake-avx512", "-mtune=skylake_avx512"),
        ("-march=native", "-march=native"),
        ("-flto=auto", "-flto"),
        ("-flto=2", "-flto"),
        ("-flto=thin", "-flto=thin"),
    ],
)
def test_options_in_the_spelling_of_gcc_and_clang(given: str, passed: str) -> None:
    assert plan([given, "a.c"]).arguments == (passed, "a.c")


def test_a_verbose_link_is_a_link() -> None:
    # CMake finds OpenMP, and the libraries that a compiler adds, by `-v` with an object.
    assert plan(["-v", "a.o", "-o", "a"]).links
    assert not plan(["-v"]).links


def test_what_a_response_file_says_counts(sources: Path) -> None:
    (sources / "inner").write_text('-DFACTOR=2 "-Iinclude"\n-c')
    (sources / "outer").write_text("twice.c @inner -o out.o")
    done = run("@outer", cwd=sources)
    assert done.returncode == 0, done.stderr
    assert b"optmig" not in (sources / "out.o").read_bytes(), "-c stands in the file"
    (sources / "loop").write_text("@loop")
    assert run("@loop", cwd=sources).returncode == 2


def test_assembly_on_standard_output(sources: Path) -> None:
    source = "int twice(int x) { return 2 * x; }\n"
    done = subprocess.run(
        [*CC, "-O2", "-S", "-Werror", "-x", "c", "-", "-o", "-"],
        cwd=sources,
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "twice:" in done.stdout
    assert not (sources / "-").exists()


def test_the_hosts_libraries_are_not_the_compilers(sources: Path) -> None:
    assert run("-print-multiarch", cwd=sources).stdout == "x86_64-linux-musl\n"
    assert run("-print-file-name=libm.a", cwd=sources).stdout == "libm.a\n"


CONFIGURE = """#!/bin/sh
# What autoconf's tests come down to: a compiler that works, whose programs run here, that warns of
# nothing it is given, has the usual libraries and writes dependencies.
set -e
ask() { printf '%s\\n' "$2" > conftest.c; shift 2; $CC $CFLAGS "$@"; }
ask 'a program' 'int main(void) { return 0; }' conftest.c -o conftest
./conftest
ask 'libraries' 'double sqrt(double); int main(int c, char **v) { return v && sqrt(c) < 0; }' \\
  -Werror conftest.c -o conftest -lm -lpthread -ldl -lrt
ask 'flags' 'int x;' -Werror -Werror=unused-command-line-argument -pthread \\
  -c conftest.c -o conftest.o
ask 'position' 'int main(void) { return 0; }' -Werror -fPIE -pie conftest.c -o conftest \\
  -Wl,--as-needed -Wl,-z,relro
if ask 'absent' 'int nowhere(void); int main(void) { return nowhere(); }' conftest.c -o no 2>log
then
  echo 'links what is not there'; exit 1
fi
ask 'dependencies' '#include "twice.h"' -Iinclude -MMD -MF conftest.d -c conftest.c -o conftest.o
grep -q twice.h conftest.d
"""


@pytest.mark.timeout(600)  # the first marked build compiles libc
@pytest.mark.parametrize("tracker", ["kernel", "compiler"])
def test_what_configure_scripts_ask(tracker: str, sources: Path) -> None:
    (sources / "configure").write_text(CONFIGURE)
    done = subprocess.run(
        ["sh", "configure"],
        cwd=sources,
        env=os.environ | {"CC": " ".join([*CC, f"--tracker={tracker}"]), "CFLAGS": "-O2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nowhere" in (sources / "log").read_text()


def test_an_image_runs_alone_only_where_that_is_asked_for(sources: Path) -> None:
    assert (
        run("-x", "c", "-DFACTOR=2", "-Iinclude", *("main.c", "twice.c"), cwd=sources).returncode
        == 0
    )
    image = sources / "a.out"
    assert refuses_to_start_alone(image)
    for wish, status in (("1", 0), ("0", 127), ("", 127)):
        done = subprocess.run(
            [image], env={"OPTMIG_ALONE": wish}, capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert (done.stdout == "42 4.0\n") is (status == 0)
    (sources / "cmTC_0a1b2").write_bytes(image.read_bytes())
    (sources / "cmTC_0a1b2").chmod(0o755)
    probe = subprocess.run([sources / "cmTC_0a1b2"], capture_output=True, text=True, check=True)
    assert probe.stdout == "42 4.0\n"


def test_link_time_optimisation_through_an_archive(sources: Path) -> None:
    flags = ("-flto=auto", "-O2", "-Iinclude", "-DFACTOR=2")
    ar = [sys.executable, "-c", "from optmigd.enclave_shim.toolchain.cc import main_ar; main_ar()"]
    assert run(*flags, "-c", "twice.c", "-o", "twice.o", cwd=sources).returncode == 0
    assert (sources / "twice.o").read_bytes().startswith(b"BC"), "bitcode"
    subprocess.run([*ar, "rcs", "libtwice.a", "twice.o"], cwd=sources, check=True)
    done = run(*flags, "main.c", "-L.", "-ltwice", "-lm", "-o", "program", cwd=sources)
    assert done.returncode == 0, done.stderr
    load(str(sources / "program"))
    assert refuses_to_start_alone(sources / "program")
