"""docs/system-calls.md says of every system call what the runtime's table does with it."""

import re
from pathlib import Path

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.syscall_names import NAMES

DISPATCH = Path(abi.__file__).resolve().parent / "runtime" / "dispatch.c"
PAGE = Path(__file__).parents[2] / "docs" / "system-calls.md"
GROUPS = {
    "rt_forward": {"Forwarded"},
    "rt_fd_forward": {"Forwarded"},
    "rt_path_call": {"Forwarded"},
    "rt_fd_new_blocker": {"Held"},
    "sys_zero": {"Without effect"},
    "sys_quiet_enosys": {"Refused quietly"},
    None: {"Refused"},
}


def handlers() -> dict[str, str]:
    """Call to handler, as the table in the C source has it."""
    text = DISPATCH.read_text()
    macros = dict(re.findall(r"#define (\w+)\(n\) \[__NR_##n\] = (\w+)", text))
    table = re.search(r"static const call_fn table\[\] = \{(.*?)\n?\};", text, re.DOTALL)
    assert table
    found = dict(re.findall(r"\[__NR_(\w+)\] =\s*(\w+)", table[1]))
    for macro, call in re.findall(r"\b([A-Z]+)\((\w+)\)", table[1]):
        found[call] = macros[macro].replace("sys_", f"sys_{call}" if macro == "OWN" else "sys_")
    return found


def documented() -> dict[str, str]:
    """Call to group, as the page has it; each call once."""
    groups: dict[str, str] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        group, _, body = section.partition("\n")
        for call in re.findall(r"`(\w+)`", body.rsplit("\n\n", 1)[-1]):
            assert call not in groups, f"{call} stands there twice"
            groups[call] = group
    return groups


def test_every_call_of_the_kernel_stands_there_once() -> None:
    assert set(documented()) == set(NAMES.values())


def test_each_call_stands_where_the_table_puts_it() -> None:
    table, page = handlers(), documented()
    assert len(table) > 150 and set(table) <= set(NAMES.values())
    wrong = {
        call: (group, table.get(call))
        for call, group in page.items()
        if group not in GROUPS.get(table.get(call), {"Carried", "Emulated"})
    }
    assert wrong == {}
