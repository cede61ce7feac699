"""The examples of docs/operating.md run as they are printed there."""

import re
from pathlib import Path
from typing import Any

import pytest

from optmigd.enclave_shim.policy import parse
from optmigd.protocol.errors import MigrationFailed
from tests.support.control_server import MIGRATION, STATUS, ControlServer, Params

TEXT = Path(__file__).parents[2].joinpath("docs/operating.md").read_text("utf-8")


def example(name: str) -> Any:
    """The function `name` of the documentation's Python blocks."""
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        if f"def {name}(" in block:
            scope: dict[str, Any] = {}
            exec(compile(block, "docs/operating.md", "exec"), scope)  # noqa: S102 - our own documentation
            return scope[name]
    raise LookupError(f"docs/operating.md has no example {name!r}")


async def test_a_daemon_in_the_nursery_of_an_agent(tmp_path: Path) -> None:
    assert await example("main")(tmp_path) == "agent"


async def test_an_agent_drains_a_host(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [STATUS | {"enclave": name} for name in ("one", "two")]
    statuses.append(STATUS | {"enclave": "gone", "state": "moved"})

    def migrate(params: Params) -> Params:
        if params["enclave"] == "two":
            raise MigrationFailed("the link was cut")
        return MIGRATION

    with ControlServer(list=lambda _: {"enclaves": statuses}, migrate=migrate) as server:
        assert await example("drain")(server.path, "b") == {"one": 21.5}
        assert [params["enclave"] for name, params in server.requests if name == "migrate"] == [
            "one",
            "two",
        ]
    assert "two stays: failed: the link was cut" in capsys.readouterr().out


def test_a_script_without_trio_runs_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    def logs(params: Params) -> Any:
        yield {"content": b"42\n"}
        return {}

    with ControlServer(
        launch=lambda _: {"enclave": "e"}, logs=logs, wait=lambda _: {"exit_status": 3}
    ) as server:
        assert example("run")(server.path, "image") == 3
    assert capsys.readouterr().out == "42\n"


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL))
def test_a_documented_policy_is_accepted(block: str) -> None:
    policy = parse(block.encode())
    assert policy.platforms == ["same"]
    assert policy.debug is False
