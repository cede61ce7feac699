"""What a move would be like: a sampled dirty rate, and the prediction from it."""

from dataclasses import dataclass

import trio

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.arena import count_pages
from optmigd.enclave_shim.migration.common import Enclave, ExportOrders, Params
from optmigd.enclave_shim.trackers import make_tracker
from optmigd.protocol.convergence import Settings, forecast
from optmigd.protocol.session import Proposal

SAMPLE_S = 1.0
FIXED_DOWNTIME_MS = 8.0
"""What a switchover takes with nothing dirty (measured on loopback)."""
ASSUMED_BYTES_S = 1e9
"""Where no bandwidth is given, because a dry run opens no data stream."""


@dataclass(frozen=True)
class DirtySample:
    """How many distinct pages were written in an interval."""

    written_pages: int
    interval_s: float

    def fields(self) -> Params:
        """As Contract 1 says (`sample_dirty`)."""
        return {
            "dirty_pages_rate": round(self.written_pages / self.interval_s),
            "written_pages": self.written_pages,
            "interval_s": self.interval_s,
        }


async def sample_dirty(enclave: Enclave, interval_s: float = SAMPLE_S) -> DirtySample:
    """Track the running program for a while.

    Raises:
        TrackerUnavailable: this kernel cannot.

    Cancelled, it returns when the tracking has ended.
    """
    tracker = make_tracker(enclave)
    try:
        await trio.to_thread.run_sync(tracker.arm)
        started_s = trio.current_time()
        await trio.sleep(interval_s)
        written = await trio.to_thread.run_sync(tracker.collect)
        return DirtySample(count_pages(written), round(trio.current_time() - started_s, 3))
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tracker.disarm)


def forecast_fields(proposal: Proposal, orders: ExportOrders, sample: DirtySample) -> Params:
    """The prediction of a dry run's report."""
    speed = float(orders.max_bandwidth) or ASSUMED_BYTES_S
    resident_pages = proposal.resident_bytes // abi.PAGE_BYTES
    rate = sample.written_pages / sample.interval_s
    predicted = forecast(
        resident_pages=resident_pages,
        dirty_pages_rate=rate,
        # Longer than the sample it will write to more pages; how many more, nobody knows.
        written_pages=resident_pages,
        throughput_bytes_s=speed,
        settings=Settings(
            downtime_limit_ms=orders.downtime_limit_ms,
            on_stall=orders.on_stall,
            fixed_ms=FIXED_DOWNTIME_MS,
        ),
    )
    return {
        "rounds": predicted.rounds,
        "total_time_ms": round(predicted.total_time_ms, 1),
        "downtime_ms": round(predicted.downtime_ms, 1),
        "converges": predicted.converges,
        "dirty_pages_rate": round(rate),
        "throughput_bytes_s": round(speed),
        "throughput_assumed": not orders.max_bandwidth,
    }
