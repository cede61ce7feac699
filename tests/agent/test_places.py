"""Names of calls and places: of every call the kernel has, and whatever an image's table holds."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.places import Symbols, call_place, read_symbols
from optmigd.enclave_shim.syscall_names import NAMES
from tests.conftest import BuildProgram

SYMBOLS = Symbols((100, 200, 300), (150, 260, 310), ("__syscall_cp_c", "connect", "main"))


def place(nr: int, ip: int, *callers: int) -> np.void:
    records = np.zeros(1, abi.RT_PLACE)
    record: np.void = records[0]
    record["nr"], record["ip"] = nr, ip
    record["callers"][: len(callers)] = callers
    return record


def test_the_names_are_those_of_the_kernel_header() -> None:
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        pytest.skip("the compiler, which brings the header, is not installed")
    include = Path(spec.origin).parent / "lib/libc/include/x86-linux-any/asm/unistd_64.h"
    found = re.findall(r"#define __NR_(\w+) (\d+)", include.read_text())
    assert {int(number): name for name, number in found} == NAMES


def test_a_place_names_the_functions_and_leaves_out_plumbing() -> None:
    made = call_place(place(42, 120, 0xDEAD, 210, 220, 305), SYMBOLS)
    assert (made.call, made.place) == ("connect", "connect+0xa < main+0x5")


def test_without_names_a_place_is_the_address() -> None:
    assert call_place(place(9999, 0x1234, 0x5678), Symbols()).place == "0x1234"
    assert call_place(place(9999, 0x1234), Symbols()).call == "system call 9999"


def test_an_image_has_names(program: BuildProgram) -> None:
    symbols = read_symbols(program("holder").image.read_bytes())
    at = symbols.names.index("main")
    assert symbols.name(symbols.starts[at] + 3) == "main+0x3"
    assert symbols.name(symbols.ends[-1] + 4096).startswith("0x")


@given(st.binary(max_size=300))
def test_a_damaged_table_gives_no_names_and_no_error(tail: bytes) -> None:
    assert isinstance(read_symbols(b"\x7fELF" + tail), Symbols)
