"""An ordinary user tries to look into that user's own daemon, agent and program.

`python -m tests.support.peeping IMAGE FOLDER` prints, as JSON, for each process what could be read
of it. The last one, `control`, is an ordinary process: it shows that there is something to see.
"""

import json
import subprocess
import sys
from pathlib import Path

from optmigd.bench.hosts import start_host, stop_host
from tests.support.processes import processes_of


def readable(pid: int) -> list[str]:
    """What of a process can be read."""
    found = []
    for name in ("environ", "mem", "maps"):
        try:
            with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
                if name != "mem":
                    file.read(1)
        except OSError:
            continue
        found.append(name)
    return found


def main() -> None:
    """Start a host with an enclave, look, and end it."""
    image, folder = map(Path, sys.argv[1:])
    host = start_host("alpha", folder)
    control = subprocess.Popen(["sleep", "100"])
    try:
        host.client.launch(image, enclave="e1", memory_bytes=256 << 20, args=["100000000000"])
        seen = {name: readable(pid) for pid, name in processes_of(host).items()}
        print(json.dumps({**seen, "control": readable(control.pid)}))
    finally:
        control.kill()
        control.wait()
        stop_host(host)


if __name__ == "__main__":
    main()
