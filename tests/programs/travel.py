"""One program, moved at random instants, and its answer compared with an uninterrupted run's."""

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optmigd.bench.hosts import Host
from optmigd.requests import Tracker
from tests.programs.cases import Case
from tests.support.journeys import Journey


@dataclass(frozen=True)
class Travelled:
    """What came of one program under one tracker."""

    program: str
    tracker: str
    moves: int
    downtimes_ms: list[float]
    verified: bool
    equal: bool
    status: int
    seed: int

    @property
    def downtime_ms(self) -> float:
        """The median over the moves."""
        return statistics.median(self.downtimes_ms) if self.downtimes_ms else float("nan")

    def as_json(self) -> dict[str, Any]:
        """All of it, and the median."""
        return {**asdict(self), "downtime_ms": self.downtime_ms}


def travel(
    case: Case,
    image: Path,
    expected: str,
    hosts: tuple[Host, Host],
    folder: Path,
    *,
    scale: int,
    moves: int,
    tracker: Tracker,
    seed: int,
) -> Travelled:
    """Launch the image, move it that often (or until it ends), and compare its answer."""
    own = folder / "own"
    own.mkdir(parents=True)
    case.put_files(own)
    journey = Journey(hosts, f"{case.name}-{tracker}-{seed}", seed)
    launched = journey.here.client.launch(
        image,
        enclave=journey.enclave,
        memory_bytes=case.memory_bytes,
        args=case.arguments(scale),
        env=dict(case.env),
        dir=own,
        tracker=tracker,
    )
    if launched["tracker"] != tracker:
        raise RuntimeError(f"{case.name}: expected tracker {tracker}, got {launched['tracker']}")
    made = journey.travel(moves, 0.8, verify=True)
    status = journey.here.client.wait(journey.enclave)["exit_status"]
    output = b"".join(journey.here.client.logs(journey.enclave))
    directory = Path(journey.here.client.status(journey.enclave)["dir"] or own)
    answer = case.answer(output, directory) if status == 0 else f"status {status}"
    return Travelled(
        program=case.name,
        tracker=tracker,
        moves=made,
        downtimes_ms=[move["downtime_ms"] for move in journey.moves],
        verified=all(move["verified"] for move in journey.moves),
        equal=status == 0 and answer == expected,
        status=status,
        seed=seed,
    )
