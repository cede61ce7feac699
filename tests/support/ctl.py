"""Running `optmigctl` as an operator would, and reading what it prints."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from optmigd.bench.hosts import Host

CTL = (sys.executable, "-m", "optmigd.cli.ctl")


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object of a command with `--json`."""
        value: dict[str, Any] = json.loads(self.stdout)
        return value

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command with `--json` that failed."""
        value: dict[str, Any] = self.object["error"]
        return value

    @property
    def blocker_codes(self) -> set[str]:
        """The codes of all blockers named, by `check` or by an error."""
        found = self.object
        blockers = found["error"]["fields"]["blockers"] if "error" in found else found["blockers"]
        return {blocker["code"] for blocker in blockers}


def ctl(host: Host, *words: str, json_output: bool = True) -> Outcome:
    """Run one command against a host's daemon."""
    options = ("--json",) if json_output else ()
    done = subprocess.run(
        [*CTL, "--socket", str(host.client.socket), *options, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
