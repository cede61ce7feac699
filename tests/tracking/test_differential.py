"""Both trackers on the same execution: what the kernel saw, the marks name as well."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
import trio

from optmigd.bench.programs import build, build_workload
from optmigd.enclave_shim.image import load
from optmigd.enclave_shim.toolchain.cc import run
from tests.conftest import PROGRAMS
from tests.support.agents import AgentHandle, agents, launch_params

MEMORY_BYTES = 256 << 20
WRITER = """
static volatile char memory[1 << 20];
int main(void) {
  for (unsigned long i = 1;; i += 4099)
    memory[i % sizeof memory] += 1;
}
"""
ASSEMBLY = """
void fill(void *to, long bytes) {
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0) : "memory");
}
"""


@pytest.mark.timeout(600)  # the first build compiles libc
@pytest.mark.parametrize(
    ("name", "arguments", "seconds"),
    [
        ("stores", ["1000000", "{seed}", "500"], 4.0),
        pytest.param("stores", ["100000000", "{seed}"], 50.0, marks=pytest.mark.soak),
        pytest.param("threads", ["8", "100000000"], 50.0, marks=pytest.mark.soak),
    ],
)
async def test_the_marks_miss_nothing_that_the_kernel_sees(
    name: str, arguments: list[str], seconds: float, tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    program = build(PROGRAMS / f"{name}.c", tmp_path, "-pthread", "-w", marks=True)
    args = [one.format(seed=seed) for one in arguments]
    found = await compared(program.image, args, seconds, tmp_path)
    assert found["missed"] == []
    assert found["rounds"] >= 5
    assert found["kernel_pages"] > 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [3.0, pytest.param(50.0, marks=pytest.mark.soak)])
async def test_the_marks_miss_nothing_of_openmp(seconds: float, tmp_path: Path) -> None:
    program = build_workload("pagerank", tmp_path, marks=True)
    assert load(str(program.image)).mark_blockers == ()
    found = await compared(program.image, ["pagerank", "32", "100000"], seconds, tmp_path)
    assert found["missed"] == []
    assert found["rounds"] >= 5
    assert found["kernel_pages"] > 100


@pytest.mark.timeout(600)
async def test_an_object_without_marks_is_named_and_its_writes_are_missed(tmp_path: Path) -> None:
    """What shows that the comparison can fail."""
    source, plain, image = (str(tmp_path / name) for name in ("w.c", "w.o", "w.image"))
    await trio.Path(source).write_text(WRITER)
    assert run("cc", ["-O2", "-c", source, "-o", plain]) == 0
    assert run("cc", ["--tracker=compiler", plain, "-o", image]) == 0
    assert load(image).mark_blockers == ("w.o: an object without marks",)
    found = await compared(Path(image), [], 1.0, tmp_path)
    assert len(found["missed"]) > 100


@pytest.mark.timeout(600)
async def test_the_status_names_what_cannot_be_tracked(tmp_path: Path) -> None:
    source, image = tmp_path / "w.c", tmp_path / "w.image"
    await trio.Path(source).write_text(WRITER + ASSEMBLY)
    assert run("cc", ["--tracker=compiler", str(source), "-o", str(image)]) == 0
    async with agents(tmp_path, 1) as (handle,):
        answer = await handle.request("launch", **launch_params(image, tracker="compiler"))
        assert answer["tracker"] == "none"
        (blocker,) = (await handle.request("status"))["blockers"]
        assert blocker["code"] == "tracker"
        assert blocker["subject"] == "compiler"
        assert "w.c: inline assembly that may write memory: rep stosb" in blocker["message"]


async def compared(image: Path, args: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Run an image under both trackers; what they said."""
    directory = folder / "instance"
    directory.mkdir(mode=0o700)
    handle = AgentHandle(directory)
    handle.start(module=("tests.support.differential_agent",))
    try:
        async with trio.open_nursery() as nursery:
            await handle.connect(nursery)
            params = launch_params(image, args=args, memory_bytes=MEMORY_BYTES)
            await handle.request("launch", **params)
            await handle.request("sample_dirty", interval_s=seconds)
            nursery.cancel_scope.cancel()
    finally:
        handle.kill()
    found: dict[str, Any] = json.loads((directory / "differential.json").read_text())
    print(found)
    return found
