"""A program that the compiler tracker cannot follow: its owner is told so before it is moved."""

from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from optmigd.bench.programs import build
from tests.support.ctl import ctl

CLEARING = """
#include <stdio.h>
#include <unistd.h>
static char memory[4096];
int main(void) {
  void *to = memory;
  long bytes = sizeof memory;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0) : "memory");
  puts("cleared");
  fflush(stdout);
  for (;;)
    pause();
}
"""


@pytest.mark.timeout(600)  # the first build compiles libc
def test_inline_assembly_that_writes_memory_is_named_by_check_and_refuses_a_live_move(
    pair: tuple[Host, Host], tmp_path: Path
) -> None:
    source = tmp_path / "clearing.c"
    source.write_text(CLEARING)
    image = build(source, tmp_path, marks=True).image
    here, there = pair
    words = ("launch", "--tracker", "compiler", "--id", "clearing", str(image))
    assert ctl(here, *words).code == 0

    for command in ("check", "migrate"):
        told = ctl(here, command, "clearing", there.name)
        assert told.code == 3, told
        assert told.blocker_codes == {"tracker"}
    shown = ctl(here, "check", "clearing", there.name, json_output=False)
    assert shown.code == 3
    for part in ("tracker", "compiler", "clearing.c", "inline assembly", "rep stosb"):
        assert part in shown.stdout + shown.stderr

    # It needs no tracker while it stands still.
    moved = ctl(here, "migrate", "--mode", "stop-and-copy", "clearing", there.name)
    assert moved.code == 0, moved.stdout
    there.client.stop("clearing")
