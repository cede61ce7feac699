"""Moving one program to and fro, live and by stop-and-copy in turn, and noting what it took."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from optmigd.bench.cells import Cell
from optmigd.bench.hosts import Host
from optmigd.bench.results import CellResult, Mark, ModeName, Move, Round, Sample
from optmigd.bench.writer_record import read_record, whole_lines
from optmigd.protocol.errors import NotConverging, OptmigError
from optmigd.requests import OnStall

MODES: tuple[ModeName, ModeName] = ("precopy", "stop-and-copy")
BETWEEN_S = 0.5
"""How long the program runs between two moves, so that each finds it at work."""
RECORD_LINE_S = 0.1
_MOVE_FIELDS = (
    *("downtime_ms", "setup_time_ms", "total_time_ms", "transferred_bytes"),
    "downtime_parts_ms",
)


class MemoryWatch:
    """The largest memory of any daemon and any agent, as seen at every event of a migration."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        """Watch two hosts; nothing was seen yet."""
        self._hosts = hosts
        self.daemon_bytes = 0
        self.agent_bytes = 0

    def look(self, event: object = None) -> None:
        """Look once."""
        for host in self._hosts:
            self.daemon_bytes = max(self.daemon_bytes, _own_memory_bytes(host.process.pid))
            for path in host.folder.glob("state/enclaves/*/agent.worker.pid"):
                self.agent_bytes = max(self.agent_bytes, _own_memory_bytes(int(path.read_text())))


def measure(hosts: tuple[Host, Host], image: Path, cell: Cell, repeats: int) -> CellResult:
    """Start the program, move it `repeats` times in each mode, and end it.

    Raises:
        OptmigError: it did not start, or a move failed.
    """
    enclave = "bench-" + cell.key.replace("/", "-")
    launch(hosts[0], image, cell, enclave)
    memory = MemoryWatch(hosts)
    moves: list[Move] = []
    marks: list[Mark] = []
    here, there = hosts
    try:
        for repeat in range(repeats):
            # Which mode comes first changes, so that neither always finds the fresher memory.
            for mode in MODES if repeat % 2 == 0 else reversed(MODES):
                time.sleep(BETWEEN_S)
                begin_s = _now_of(here, enclave, cell)
                answer, converged = _migrate(here, there, enclave, cell, mode, memory)
                memory.look()
                here, there = there, here
                if cell.records:
                    time.sleep(2 * RECORD_LINE_S)  # the line that holds the downtime is written
                    mark = Mark(mode=mode, begin_s=begin_s, end_s=_now_of(here, enclave, cell))
                    marks.append(mark)
                moves.append(_move(mode, answer, converged=converged))
        samples = _samples(here, enclave) if cell.records else []
    finally:
        end(here, enclave)
    for move, mark in zip(moves, marks, strict=False):
        inside = [one for one in samples if mark.begin_s < one.at_s <= mark.end_s]
        move.program_pause_ms = max((one.longest_pause_ms for one in inside), default=None)
    return CellResult(
        key=cell.key,
        group=cell.group,
        title=cell.title,
        size_mib=cell.size_mib,
        rate_mb_s=cell.rate_mb_s,
        pattern=cell.pattern,
        content=cell.content,
        streams=cell.streams,
        moves=moves,
        agent_bytes=memory.agent_bytes,
        daemon_bytes=memory.daemon_bytes,
        samples=samples,
        marks=marks,
    )


def launch(host: Host, image: Path, cell: Cell, enclave: str) -> None:
    """Start a cell's program and wait until it is worth moving."""
    host.client.launch(
        image,
        enclave=enclave,
        memory_bytes=cell.memory_bytes,
        args=cell.args,
        tracker=cell.tracker,
    )
    output = b""
    for piece in host.client.logs(enclave, follow=True):
        output += piece
        if cell.ready.encode() in output:
            return
    raise RuntimeError(f"{cell.program} ended before it was ready: {output.decode()[-500:]!r}")


def end(host: Host, enclave: str) -> None:
    """End a program that was measured, or that failed."""
    # After a failure it may be anywhere: then the daemons are ended, and that is told already.
    with suppress(OptmigError):
        host.client.stop(enclave)
        host.client.forget(enclave)


def _migrate(
    here: Host, there: Host, enclave: str, cell: Cell, mode: ModeName, memory: MemoryWatch
) -> tuple[dict[str, Any], bool]:
    """Move it, and say whether it converged: if not, even throttled, it is moved all the same."""
    strategies: tuple[OnStall, OnStall] = ("throttle", "switch")
    for strategy in strategies:
        try:
            answer = here.client.migrate(
                enclave,
                there.name,
                mode=mode,
                streams=cell.streams,
                on_stall=strategy,
                on_event=memory.look,
            )
        except NotConverging:
            if strategy == "switch":
                raise
        else:
            return dict(answer), strategy == "throttle"
    raise AssertionError("the last strategy returns or raises")


def _move(mode: ModeName, answer: dict[str, Any], *, converged: bool) -> Move:
    fields = {name: answer[name] for name in _MOVE_FIELDS}
    rounds = [
        Round(**{name: one[name] for name in Round.__struct_fields__}) for one in answer["rounds"]
    ]
    return Move(mode=mode, converged=converged, program_pause_ms=None, rounds=rounds, **fields)


def _samples(host: Host, enclave: str) -> list[Sample]:
    """The program's account of its time so far; it travels in the enclave's own directory."""
    directory = host.client.status(enclave).get("dir")
    text = (Path(directory or "") / "record").read_text()
    return [
        Sample(at_s=one.end_s, pages=one.pages, longest_pause_ms=one.longest_pause_ms)
        for one in read_record(whole_lines(text))
    ]


def _now_of(host: Host, enclave: str, cell: Cell) -> float:
    samples = _samples(host, enclave) if cell.records else []
    return samples[-1].at_s if samples else 0.0


def _own_memory_bytes(pid: int) -> int:
    """Memory of a process that is its own, without the arena; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields.get("RssAnon", "0").split()[0]) << 10
