"""What the random writer records of its own time: a line for every tenth of a second."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A tenth of a second as the program saw it.

    Attributes:
        end_s: seconds since its first write.
        took_s: how long it was; more where the program stood still, or could not keep its rate.
        pages: written in it.
        longest_pause_ms: between two batches of writes.
    """

    end_s: float
    took_s: float
    pages: int
    longest_pause_ms: float

    @property
    def pages_s(self) -> float:
        """Pages per second."""
        return self.pages / self.took_s if self.took_s else 0.0


def whole_lines(text: str) -> str:
    """The record without a last line that is still being written."""
    return text[: text.rfind("\n") + 1]


def read_record(text: str) -> list[Interval]:
    """The writer's record: a line for every interval, with its end, pages and longest pause."""
    intervals, before_s = [], 0.0
    for line in text.splitlines():
        end_s, pages, pause_ms = line.split()
        intervals.append(
            Interval(float(end_s), float(end_s) - before_s, int(pages), float(pause_ms))
        )
        before_s = float(end_s)
    return intervals
