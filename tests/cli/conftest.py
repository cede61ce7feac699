"""Running `optmigctl` in this process, and in one of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from optmigd.cli.ctl import ctl
from optmigd.cli.invocation import run
from tests.support.control_server import ControlServer


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)


Ctl = Callable[..., Outcome]


@pytest.fixture
def optmigctl(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Call as ``optmigctl(server, "status", "join")``; None for no server."""

    def call(server: ControlServer | None, *arguments: str) -> Outcome:
        if server is not None:
            monkeypatch.setenv("OPTMIGD_SOCKET", str(server.path))
        code = run(ctl, "optmigctl", arguments)
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return call
