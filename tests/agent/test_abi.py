"""The Python mirror of abi.h agrees with what a C compiler makes of the header."""

import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from optmigd.enclave_shim import abi

HEADER = Path(abi.__file__).resolve().parent / "runtime" / "abi.h"
CONSTANTS = {
    "OPTMIG_ABI_VERSION": abi.ABI_VERSION,
    "OPTMIG_CTL_MAGIC": abi.CTL_MAGIC,
    "OPTMIG_RT_MAGIC": abi.RT_MAGIC,
    "PAGE_BYTES": abi.PAGE_BYTES,
    "ARENA_BASE": abi.ARENA_BASE,
    "CTL_BASE": abi.CTL_BASE,
    "LAUNCH_BYTES": abi.LAUNCH_BYTES,
    "FILE_MARKS_OFFSET": abi.FILE_MARKS_OFFSET,
    "FILE_MARKS": abi.FILE_MARKS,
    "FILE_WHOLE_MARKS": abi.FILE_WHOLE_MARKS,
    "FILE_MARKS_FACTOR": abi.FILE_MARKS_FACTOR,
    "FILE_MARKS_SHIFT": abi.FILE_MARKS_SHIFT,
    "FILE_BLOCK_BYTES": abi.FILE_BLOCK_BYTES,
    "CTL_HEADER_BYTES": abi.CTL_HEADER_BYTES,
    "MARKS_BASE": abi.MARKS_BASE,
    "MARKS_BIAS": abi.MARKS_BIAS,
    "LOW_MARKS_BYTES": abi.LOW_MARKS_BYTES,
    "RT_MAX_SLOTS": abi.RT_MAX_SLOTS,
    "RT_OUTPUTS": abi.RT_OUTPUTS,
    "RT_STATE_BYTES": abi.RT_STATE_BYTES,
    "QUIESCE_SIGNAL": abi.QUIESCE_SIGNAL,
    "RESERVED_FD_FIRST": abi.RESERVED_FD_FIRST,
    "RESERVED_FD_COUNT": abi.RESERVED_FD_COUNT,
    "RT_MAX_THREADS": abi.RT_MAX_THREADS,
    "RT_MAX_FDS": abi.RT_MAX_FDS,
    "RT_MAX_OFDS": abi.RT_MAX_OFDS,
    "RT_MAX_WRITINGS": abi.RT_MAX_WRITINGS,
    "RT_PATH_BYTES": abi.RT_PATH_BYTES,
    "RT_MAX_VMAS": abi.RT_MAX_VMAS,
    "RT_MAX_WATCHES": abi.RT_MAX_WATCHES,
    "RT_CONTENT_BYTES": abi.RT_CONTENT_BYTES,
    "RT_PLACE_CALLERS": abi.RT_PLACE_CALLERS,
    "CTL_MAX_REFUSED": abi.CTL_MAX_REFUSED,
    "FD_OPEN": abi.FD_OPEN,
    **{f"MODE_{mode.name}": int(mode) for mode in abi.Mode},
    **{f"RT_{state.name}": int(state) for state in abi.RtState},
    **{f"CMD_{command.name}": int(command) for command in abi.Command},
    **{f"OFD_{kind.name}": int(kind) for kind in abi.OfdKind},
    **{f"BLOCK_{block.name}": int(block) for block in abi.Block},
}


def compiler() -> list[str]:
    if which("cc"):
        return ["cc"]
    pytest.importorskip("ziglang", reason="neither cc nor ziglang is here to compile abi.h")
    return [sys.executable, "-m", "ziglang", "cc"]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    directory = tmp_path_factory.mktemp("abi")
    lines = [f'P("{name}", {name});' for name in CONSTANTS]
    for struct, dtype in abi.STRUCTS.items():
        lines.append(f'P("{struct}", sizeof(struct {struct}));')
        for name in dtype.names or ():
            lines.append(f'P("{struct}.{name}", offsetof(struct {struct}, {name}));')
            lines.append(f'P("{struct}.{name}#", sizeof(((struct {struct} *)0)->{name}));')
    (directory / "facts.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{HEADER}"\n'
        '#define P(n, v) printf("%s %llu\\n", n, (unsigned long long)(v))\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    binary = directory / "facts"
    subprocess.run([*compiler(), "-o", binary, directory / "facts.c"], check=True)
    output = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, output.splitlines())}


def test_constants(facts: dict[str, int]) -> None:
    assert {name: facts[name] for name in CONSTANTS} == CONSTANTS


@pytest.mark.parametrize("struct", abi.STRUCTS)
def test_offsets_and_sizes(facts: dict[str, int], struct: str) -> None:
    dtype = abi.STRUCTS[struct]
    ours = {struct: dtype.itemsize}
    for name, (field, offset, *_) in (dtype.fields or {}).items():
        ours[f"{struct}.{name}"] = offset
        ours[f"{struct}.{name}#"] = field.itemsize
    theirs = {
        name: value
        for name, value in facts.items()
        if name == struct or name.startswith(struct + ".")
    }
    assert ours == theirs
