"""Looking at the processes of a host: which there are, and what the kernel shows of them."""

from contextlib import suppress
from pathlib import Path

from optmigd.bench.hosts import Host


def processes_of(host: Host) -> dict[int, str]:
    """The daemon, its agents and their programs, by number, with a name for messages.

    One on its way out is left out: it has given up its memory, and its command line with it.
    """
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                children.setdefault(int(parent), []).append(int(folder.name))
    found = {host.process.pid: "daemon"}
    waiting = [int(path.read_text()) for path in host.folder.glob("state/enclaves/*/agent.pid")]
    for pid in waiting:
        found[pid] = f"agent {pid}"
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = f"below an agent {child}"
            waiting.append(child)
    return {pid: name for pid, name in found.items() if not is_on_its_way_out(pid)}


def is_on_its_way_out(pid: int) -> bool:
    """Whether the process has ended, or has no memory any more."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().startswith("0 ")
    except (FileNotFoundError, ProcessLookupError):
        return True
