"""Results as a benchmark would leave them, made up."""

from optmigd.bench import machine
from optmigd.bench.cells import QUICK, Cell, matrix
from optmigd.bench.results import (
    SCHEMA_VERSION,
    CellResult,
    ManyMove,
    ManyResult,
    Mark,
    ModeName,
    Move,
    Results,
    Round,
    Run,
    Sample,
)


def move(mode: ModeName, downtime_ms: float) -> Move:
    """A move with that downtime."""
    rounds = [
        Round(round_no=number, pages=9, zero_pages=1, bytes=40_000 >> number, duration_ms=9.5)
        for number in range(3)
    ]
    return Move(
        mode=mode,
        converged=downtime_ms < 40,
        downtime_ms=downtime_ms,
        program_pause_ms=downtime_ms + 1,
        setup_time_ms=100.0,
        total_time_ms=1000.0 + downtime_ms,
        transferred_bytes=70_000,
        rounds=rounds,
        downtime_parts_ms={"quiesce": 0.2, "last_pages": downtime_ms - 0.2},
    )


def result(cell: Cell) -> CellResult:
    """Two moves in each mode."""
    moves: list[Move] = []
    for downtime_ms in (30.0, 50.0):
        moves += [move("precopy", downtime_ms), move("stop-and-copy", 20 * downtime_ms)]
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
        agent_bytes=1 << 24,
        daemon_bytes=1 << 23,
        samples=[
            Sample(at_s=0.1 * number, pages=100, longest_pause_ms=1.0) for number in range(1, 40)
        ],
        marks=[Mark(mode="precopy", begin_s=1.0, end_s=2.5)],
    )


def all_results() -> Results:
    """The small matrix, measured."""
    cells = [cell for cell in matrix(QUICK) if isinstance(cell, Cell)]
    many = [cell for cell in matrix(QUICK) if not isinstance(cell, Cell)]
    found = Results(
        schema_version=SCHEMA_VERSION,
        machine=machine.describe(),
        runs=[Run(started="2026-01-01T00:00:00+00:00", options={}, load_before=3.0)],
        cells=[result(cell) for cell in cells],
        many=[],
        left_out=[],
    )
    for cell in many:
        found.put(
            ManyResult(
                key=cell.key,
                title=cell.title,
                enclaves=cell.enclaves,
                size_mib=cell.size_mib,
                rate_mb_s=cell.rate_mb_s,
                directions=cell.directions,
                alone_ms=[20.0, 30.0, 22.0],
                moves=[
                    ManyMove(
                        source="alpha",
                        downtime_ms=25.0 + number,
                        total_time_ms=900.0,
                        queued_time_ms=100.0 * number,
                    )
                    for number in range(cell.enclaves)
                ],
                wall_s=4.5,
                failures=[],
            )
        )
    found.leave_out("size/8192", "8 GiB & more", "needs <more> memory")
    return found
